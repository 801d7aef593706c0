"""Bodies as the engine's requests."""

from collections.abc import Iterator
from typing import Any

from ..engine.engine import Engine
from ..errors import shortened
from ..experts.mixture import ExpertChoice
from ..request import Request, Sampling
from .errors import ApiError
from .protocol.chat import ChatBody
from .protocol.completion import CompletionBody
from .protocol.generation import GenerationBody

# OpenAI's for completions.
_COMPLETION_TOKENS = 16


def chat_requests(body: ChatBody, choice: ExpertChoice, salt: str | None, engine: Engine) -> list[Request]:
    """One request for each of the n answers."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true")
    fields = _fields(body, choice, salt)
    fields["messages"] = [message.plain() for message in body.messages]
    fields["max_tokens"] = _given(body.max_completion_tokens, body.max_tokens, engine.max_length)
    fields["logprobs"] = (body.top_logprobs or 0) if body.logprobs else None
    return list(_samples(body, fields))


def completion_requests(
    body: CompletionBody, choice: ExpertChoice, salt: str | None, most: int
) -> list[Request]:
    """One request for each of the n answers to each prompt.

    most: requests that a body may ask for.
    """
    prompts, n = body.prompts, _n(body)
    if len(prompts) * n > most:
        raise ApiError(
            400, f"the body asks for {len(prompts) * n} answers, and this server gives {most} at once"
        )
    fields = _fields(body, choice, salt)
    fields["max_tokens"] = _given(body.max_tokens, _COMPLETION_TOKENS)
    fields["logprobs"] = body.logprobs
    if not prompts:
        raise ApiError(400, "the prompt is empty: give text or a list of token ids")
    return [request for prompt in prompts for request in _samples(body, {**fields, "prompt": prompt})]


def _fields(body: GenerationBody, choice: ExpertChoice, salt: str | None) -> dict[str, Any]:
    """What both kinds of bodies say of a `Request`."""
    return {
        "expert": choice,
        "stop": body.stop,
        "stop_token_ids": body.stop_token_ids,
        "ignore_eos": body.ignore_eos,
        "add_special_tokens": body.add_special_tokens,
        "kv_reuse": body.kv_reuse,
        "raw": body.raw,
        "template": body.template,
        "salt": salt,
    }


def _samples(body: GenerationBody, fields: dict[str, Any]) -> Iterator[Request]:
    """n requests that differ in their seeds."""
    for index in range(_n(body)):
        seed = body.seed if body.seed is None or index == 0 else (body.seed + index) % 2**64
        sampling = Sampling(
            temperature=_given(body.temperature, 1.0),
            top_k=max(0, _given(body.top_k, 0)),  # -1 keeps all, as in vLLM
            top_p=_given(body.top_p, 1.0),
            min_p=body.min_p,
            seed=seed,
        )
        yield Request(sampling=sampling, **fields)


def _n(body: GenerationBody) -> int:
    n = _given(body.n, 1)
    if not 1 <= n <= 128:
        raise ApiError(400, f"n must be from 1 to 128, not {shortened(n)}")
    return n


def _given(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)
