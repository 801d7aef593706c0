"""What a request gets: its result, and what each step adds to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from ..dispatcher import Dispatch
from ..experts.mixture import ExpertChoice
from .request import Request

Reuse: TypeAlias = Literal["same_mixture", "after_prompt", "first_layer", "approximate"]
FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural log-probability under the model, before penalties, temperature and filters.

    top: the most likely token ids and their log-probabilities, likeliest first.
    """

    token_id: int
    logprob: float
    top: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished request.

    `reuse`, `reused_tokens` and `resumed_tokens` say how the answer was computed and do not count when results are
    compared.

    text: the answer without special tokens, ended before the stop string.
    token_ids: all generated tokens, the end token included.
    logprobs: of each generated token, if the request asked for them.
    expert: what the request said, or what was chosen for "auto".
    finish_reason: "stop" (end token, stop string, or one of the expert's labels and no more), "length" (max_tokens or
        the model's context is used up), "cancelled", or "error" with the reason in `error`.
    prompt_tokens: length of the prompt.
    prompt_logprobs: of each token of the prompt, None for the first, if the request asked for them; those that were
        computed, where it ended before its answer began.
    prompt_token_ids: of the prompt, where `prompt_logprobs` are.
    error: why the request failed.
    reuse: kind of prefix reuse (docs/kv_cache.md), None without any: "same_mixture"; "after_prompt" if all reused
        tokens are the base model's, before those that the expert acts on; "first_layer" if some were resumed; or
        "approximate", where that was asked for.
    reused_tokens: tokens of the prompt that were not computed because their keys and values were cached.
    resumed_tokens: further tokens that were computed only from the expert's first layer on.
    scores: natural log-probabilities of the tokens in `Request.score`, in its order.
    dispatch: how the expert of "auto" was chosen.
    asked: the prompt in the words that the expert was trained on; None if it was taken as the request gave it.
    samples: the answers to a request with `n` above 1, in order; the result itself is the first, or one that failed.
    label: which of the expert's labels the text begins with; None if it is none of them, has none, or `asked` is None.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    expert: ExpertChoice
    finish_reason: FinishReason
    prompt_tokens: int
    error: str | None = None
    reuse: Reuse | None = field(default=None, compare=False)
    reused_tokens: int = field(default=0, compare=False)
    resumed_tokens: int = field(default=0, compare=False)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    prompt_token_ids: list[int] | None = None
    scores: list[float] | None = None
    dispatch: Dispatch | None = None
    asked: str | None = None
    label: str | None = None
    samples: "list[Result] | None" = None

    @classmethod
    def refused(cls, request: object, error: str) -> "Result":
        """The result of a request that was not taken up, with the reason."""
        expert = request.named_expert if isinstance(request, Request) else None
        return cls("", [], None, expert, "error", prompt_tokens=0, error=error)

    @classmethod
    def of_samples(cls, samples: "Sequence[Result]") -> "Result":
        """The result of a request with these answers."""
        if len(samples) == 1:
            return samples[0]
        shown = next((result for result in samples if result.error is not None), samples[0])
        return replace(shown, samples=[*samples])


@dataclass(frozen=True, slots=True)
class Delta:
    """What a step added to one answer of a request.

    result: set in the answer's last delta.
    sample: which of the request's `n` answers.
    logprobs: of `token_ids`, if the request asked for them.
    prompt_logprobs, prompt_token_ids: as in `Result`, in the first delta of all, which is of the first answer.
    """

    request_id: int
    text: str
    token_ids: list[int]
    result: Result | None = None
    sample: int = 0
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    prompt_token_ids: list[int] | None = None
