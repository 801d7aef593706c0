"""Bodies as the engine's requests."""

from dataclasses import dataclass
from typing import Any, cast

from ..describe.description import Description
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
# Log-probabilities of likely tokens beside each: vLLM's. Those of a whole vocabulary would be answers of megabytes.
_MAX_LOGPROBS = 20
# Fields of the same name and meaning.
_SAME = (
    "add_special_tokens",
    "bad_words",
    "ignore_eos",
    "include_stop_str_in_output",
    "kv_reuse",
    "min_tokens",
    "priority",
    "prompt_logprobs",
    "raw",
    "response_format",
    "skip_special_tokens",
    "stop",
    "stop_token_ids",
    "template",
)


@dataclass(frozen=True, slots=True)
class Choices:
    """Who answers a body.

    fallback: in place of the base, where a dispatcher leaves it to that.
    """

    expert: ExpertChoice | Description
    fallback: ExpertChoice | Description = None


def chat_request(body: ChatBody, choices: Choices, salt: str | None, engine: Engine) -> Request:
    """The request of a conversation."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true")
    return Request(
        messages=[message.plain() for message in body.messages],
        tools=body.offered_tools,
        chat_template_kwargs=body.chat_template_kwargs,
        max_tokens=_given(body.max_completion_tokens, body.max_tokens, engine.max_length),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        **_fields(body, choices, salt),
    )


def completion_requests(body: CompletionBody, choices: Choices, salt: str | None, most: int) -> list[Request]:
    """The requests of the prompts.

    most: prompts that a body may have.
    """
    prompts = body.prompts
    if not prompts:
        raise ApiError(400, "the prompt is empty: give text or a list of token ids")
    if len(prompts) > most:
        raise ApiError(400, f"the body has {len(prompts)} prompts, and this server takes {most} at once")
    fields = _fields(body, choices, salt)
    # What stands in place of no token at all is left out of the response.
    fields["max_tokens"] = 1 if body.is_echo_alone else _given(body.max_tokens, _COMPLETION_TOKENS)
    if body.echo:
        fields["prompt_logprobs"] = _given(body.prompt_logprobs, body.logprobs)
    return [Request(prompt, logprobs=body.logprobs, **fields) for prompt in prompts]


def _fields(body: GenerationBody, choices: Choices, salt: str | None) -> dict[str, Any]:
    """What both kinds of bodies say of a `Request`."""
    for name in ("logprobs", "top_logprobs", "prompt_logprobs"):
        count = getattr(body, name, None)
        if count is not None and count > _MAX_LOGPROBS:
            raise ApiError(
                400, f"{name} is {shortened(count)}, and this server gives at most {_MAX_LOGPROBS}"
            )
    fields = {name: getattr(body, name) for name in _SAME}
    sampling = Sampling(
        temperature=_given(body.temperature, 1.0),
        top_k=max(0, _given(body.top_k, 0)),  # -1 keeps all, as in vLLM
        top_p=_given(body.top_p, 1.0),
        min_p=body.min_p,
        seed=body.seed,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=_given(body.presence_penalty, 0.0),
        frequency_penalty=_given(body.frequency_penalty, 0.0),
        logit_bias=cast(Any, body.logit_bias),  # ids are text in JSON
    )
    who = {"expert": choices.expert, "fallback": choices.fallback}
    return {**fields, **who, "n": _given(body.n, 1), "sampling": sampling, "salt": salt}


def _given(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)
