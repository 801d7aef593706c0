"""What a caller asks for and what comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, TypeAlias

from .dispatcher import Dispatch, Dispatcher
from .errors import ZweaveError
from .experts.mixture import ExpertChoice, Mixture
from .validation import check_flag, check_integer, is_integer, is_number

Message: TypeAlias = Mapping[str, str]
Reuse: TypeAlias = Literal["same_mixture", "after_prompt", "first_layer", "approximate"]
KVReuse: TypeAlias = Literal["exact", "approximate"]
FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]

MAX_LOGPROBS = 100


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; the default is greedy.

    temperature: 0 takes the most likely token, 1 samples the model's own distribution.
    top_k: keep the k most likely tokens, 0 keeps all.
    top_p: keep the most likely tokens whose probabilities reach top_p together, 1 keeps all.
    min_p: keep tokens at least min_p times as likely as the most likely one, 0 keeps all.
    seed: the draws of a request depend on its seed and on nothing else; None takes a random one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and 0 <= self.temperature <= 100):
            raise ZweaveError(f"temperature must be from 0 to 100, not {self.temperature!r}")
        if not (is_integer(self.top_k) and self.top_k >= 0):
            raise ZweaveError(f"top_k must be an integer of at least 0 (0 keeps all), not {self.top_k!r}")
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ZweaveError(f"top_p must be above 0 and at most 1, not {self.top_p!r}")
        if not (is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise ZweaveError(f"min_p must be from 0 to 1, not {self.min_p!r}")
        if self.seed is not None and not (is_integer(self.seed) and 0 <= self.seed < 2**64):
            raise ZweaveError(f"seed must be an integer from 0 to 2**64 - 1, not {self.seed!r}")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to answer it.

    prompt: text, taken as it is, or token ids.
    messages: a conversation of {"role", "content"} for the model's chat template, instead of a prompt;
        a final assistant message is continued.
    expert: a loaded expert's name, a mixture {name: weight or one weight a layer}, None for the base, or "auto":
        a dispatcher finds out which (docs/dispatch.md).
    dispatcher: for "auto", instead of the engine's.
    max_tokens: at most so many tokens are generated.
    stop: the answer ends before the first of these strings.
    ignore_eos: go on after the model's end token.
    logprobs: give each token's log-probability and those of the so many most likely ones.
    salt: requests share keys and values only with requests of the same salt, a tenant's secret for instance.
    score: token ids whose log-probabilities at the prompt's end are wanted, whatever is generated there.
    kv_reuse: "approximate" leaves the prompt to the base model, whose keys and values are shared, and has the expert
        act from the answer's header on, as if it were of scope `after_prompt`. An expert that was not trained so
        answers worse, or wrongly (docs/kv_cache.md).
    """

    prompt: str | Sequence[int] | None = None
    _: KW_ONLY
    messages: Sequence[Message] | None = None
    expert: ExpertChoice = None
    max_tokens: int = 256
    stop: str | Sequence[str] | None = ()
    ignore_eos: bool = False
    sampling: Sampling = Sampling()
    logprobs: int | None = None
    salt: str | None = None
    score: Sequence[int] = ()
    dispatcher: Dispatcher | None = None
    kv_reuse: KVReuse = "exact"

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ZweaveError("a request takes a prompt or messages: give one of the two")
        if not self.is_auto:
            Mixture.parse(self.expert)
            if self.dispatcher is not None:
                raise ZweaveError("a request's dispatcher is for expert='auto': leave one of the two out")
        if self.prompt is not None:
            _check_sequence("prompt", self.prompt, "text or a list of token ids")
        if self.messages is not None:
            if isinstance(self.messages, str):
                raise ZweaveError("messages must be a list of {role, content}, not text: use prompt for text")
            _check_sequence("messages", self.messages, "a list of {role, content}")
        check_integer("max_tokens", self.max_tokens, 1)
        if not isinstance(self.stop, str | Sequence | None) or not all(
            isinstance(text, str) and text for text in self.stop_strings
        ):
            raise ZweaveError("stop must be a non-empty string or a list of such")
        check_flag("ignore_eos", self.ignore_eos)
        if not isinstance(self.sampling, Sampling):
            raise ZweaveError(f"sampling must be a zweave.Sampling, not {type(self.sampling).__name__}")
        if self.logprobs is not None and not (
            is_integer(self.logprobs) and 0 <= self.logprobs <= MAX_LOGPROBS
        ):
            raise ZweaveError(f"logprobs must be an integer from 0 to {MAX_LOGPROBS}, not {self.logprobs!r}")
        if self.salt is not None and not (isinstance(self.salt, str) and self.salt):
            raise ZweaveError(f"salt must be a non-empty string or None, not {type(self.salt).__name__}")
        if self.kv_reuse not in ("exact", "approximate"):
            raise ZweaveError(f"kv_reuse must be 'exact' or 'approximate', not {self.kv_reuse!r}")
        if not isinstance(self.score, Sequence) or isinstance(self.score, str | bytes | bytearray):
            raise ZweaveError(f"score must be a list of token ids, not {type(self.score).__name__}")

    @property
    def is_auto(self) -> bool:
        """Whether a dispatcher chooses the expert."""
        return isinstance(self.expert, str) and self.expert == "auto"

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token's natural log-probability under the model, before temperature and filters."""

    token_id: int
    logprob: float
    top: Mapping[int, float]  # the most likely token ids and their log-probabilities, likeliest first


@dataclass(frozen=True, slots=True)
class Result:
    """A finished request.

    expert: what the request said, or what was chosen for "auto"; dispatch tells how.
    token_ids holds what was generated, the end token included; text leaves out special tokens and ends
    before the stop string. finish_reason: "stop" (end token or stop string), "length" (max_tokens or the
    model's context is used up), "cancelled", or "error" with the reason in `error`.
    scores are the natural log-probabilities of the tokens that `Request.score` names, in its order.
    reused_tokens: how many of the prompt's tokens were not computed, because their keys and values were in
    the cache. resumed_tokens: how many more were computed only from the layer on that the expert acts from.
    reuse: which kind (docs/kv_cache.md), None if there were none: "same_mixture"; "after_prompt" if they all
    are the base model's, before the tokens that the expert acts on; "first_layer" if some were resumed; or
    "approximate", where that was asked for.
    These tell of the way, not of the answer: results that differ in nothing else are equal.
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
    scores: list[float] | None = None
    dispatch: Dispatch | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What a step added to one request; `result` is set on its last one."""

    request_id: int
    text: str
    token_ids: list[int]
    result: Result | None = None


def _check_sequence(name: str, value: object, wanted: str) -> None:
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray):
        raise ZweaveError(f"{name} must be {wanted}, not {type(value).__name__}")
    if len(value) == 0:
        raise ZweaveError(f"the {name} is empty: give {wanted}")
