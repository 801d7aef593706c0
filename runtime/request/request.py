"""One prompt and how to answer it: what a caller writes."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeAlias

from ..describe.description import Description
from ..dispatcher import Dispatcher
from ..errors import ZweaveError, shortened
from ..experts.mixture import ExpertChoice, Mixture, check_name, plain_choice
from ..names import KVReuse
from ..text.messages import plain_template_kwargs, plain_tools
from ..text.structured import ResponseFormat
from ..validation import (
    as_integer,
    as_integers,
    check_flag,
    check_integer,
    has_lone_surrogate,
    is_integer,
    normalise,
)
from .sampling import Sampling

Message: TypeAlias = Mapping[str, Any]

MAX_LOGPROBS = 100
MAX_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to answer it.

    prompt: text, or token ids: a sequence, or an array of one dimension. A bare text is put into the words that its
        expert was trained on (docs/experts.md); without such words, and where it holds special tokens already, it is
        taken as it is.
    messages: a conversation of {"role", "content"} for the model's chat template, instead of a prompt;
        a final assistant message is continued. A user's message alone is a bare text to an expert with its own words.
        An assistant's message may hold "tool_calls", and one of the role "tool" what came of a call.
    tools: JSON schemas of functions that the model may call, for its chat template.
    chat_template_kwargs: further variables for the chat template, such as {"enable_thinking": False}; those that it
        does not know have no effect.
    expert: a loaded expert's name, a mixture {name: weight or one weight for each layer}, None for the base model,
        "auto" for the choice of a dispatcher (docs/dispatch.md), or a Description that the engine's generator makes an
        expert of (docs/describe.md).
    n: number of answers, whose prompt is computed once (`Result.samples`). With a seed, the i-th is the answer of the
        seed + i.
    max_tokens: the most tokens that are generated.
    stop: the answer ends before the first of these strings; special tokens may stand in them ("<|im_end|>").
    stop_token_ids: the answer ends at these tokens too, whatever `ignore_eos` says; they give no text.
    include_stop_str_in_output: the text ends with the stop string, or with the text of the token of `stop_token_ids`.
    min_tokens: so many first tokens are neither end tokens nor `stop_token_ids`, and stop strings in them do not count.
    bad_words: texts that are not generated, with a space before them or without: the last token of each cannot follow
        the others. The same letters in other tokens may come.
    skip_special_tokens: special tokens give no text.
    ignore_eos: continue after the model's end tokens.
    add_special_tokens: add what the tokenizer puts around a text, such as a begin token; None does so for a prompt and
        not for messages, whose template writes it. Token ids are taken as they are.
    escape_special: special tokens that are written out in the prompt or in a message are plain text: a user's words
        cannot end their turn or begin another.
    sampling: how tokens are sampled.
    priority: requests of a lower number go first; those of a higher one wait, and are preempted, before them.
    response_format: the form that the answer must have (docs/structured.md); a `ResponseFormat`, its fields as a dict,
        or OpenAI's {"type": "json_schema", "json_schema": {"schema": ...}}. An answer that is cut off by `max_tokens`
        or a stop string has its beginning alone.
    logprobs: return each token's log-probability and those of this number of the most likely tokens.
    prompt_logprobs: return the log-probability of each token of the prompt but the first, and those of this number of
        the most likely tokens in its place. The whole prompt is computed for them: the prefix cache is not read.
    salt: requests share KV cache only with requests of the same salt, a tenant's secret for instance.
    score: token ids whose log-probabilities at the prompt's end are returned, whatever is generated there.
    dispatcher: for "auto", instead of the engine's.
    fallback: for "auto": who answers in place of the base where the dispatcher chooses that, as below its threshold; an
        expert, a mixture or a Description.
    kv_reuse: "approximate" computes the prompt by the base model, whose KV cache is shared, and applies the expert from
        the answer's header on, as if its scope were `after_prompt`. An expert that was not trained so answers worse,
        or wrongly (docs/kv_cache.md).
    template: the loaded expert whose words a bare text is put into, instead of the expert's own: for a mixture of
        experts of several tasks, or the base model. Any other prompt is then an error.
    raw: take the prompt or messages as they are, whatever words the expert was trained on.
    mixture: not to be given: `expert` parsed, None for the base model and for "auto".
    """

    prompt: str | Sequence[int] | None = None
    _: KW_ONLY
    messages: Sequence[Message] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    expert: ExpertChoice | Description = None
    n: int = 1
    max_tokens: int = 256
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    include_stop_str_in_output: bool = False
    min_tokens: int = 0
    bad_words: Sequence[str] | None = ()
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    add_special_tokens: bool | None = None
    escape_special: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    priority: int = 0
    response_format: ResponseFormat | Mapping[str, Any] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    salt: str | None = None
    score: Sequence[int] = ()
    dispatcher: Dispatcher | None = None
    fallback: ExpertChoice | Description = None
    kv_reuse: KVReuse = "exact"
    template: str | None = None
    raw: bool = False
    mixture: Mixture | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        normalise(
            self, ("n", "max_tokens", "min_tokens", "priority", "logprobs", "prompt_logprobs"), as_integer
        )
        normalise(self, ("prompt", "score", "stop_token_ids"), as_integers)
        if (self.prompt is None) == (self.messages is None):
            raise ZweaveError("a request takes a prompt or messages: give one of the two")
        if not self.is_auto:
            if not isinstance(self.expert, Description):
                object.__setattr__(self, "mixture", Mixture.parse(self.expert))
                object.__setattr__(self, "expert", plain_choice(self.expert))
            for name in ("dispatcher", "fallback"):
                if getattr(self, name) is not None:
                    raise ZweaveError(f"a request's {name} is for expert='auto': leave one of the two out")
        if self.fallback == "auto":
            raise ZweaveError("a request's fallback is an expert, a mixture or a Description, not 'auto'")
        if not isinstance(self.fallback, Description):
            Mixture.parse(self.fallback)
            object.__setattr__(self, "fallback", plain_choice(self.fallback))
        if self.prompt is not None:
            _check_sequence("prompt", self.prompt, "text or a list of token ids", "character or token id")
        if self.messages is not None:
            if isinstance(self.messages, str):
                raise ZweaveError("messages must be a list of {role, content}, not text: use prompt for text")
            _check_sequence("messages", self.messages, "a list of {role, content}", "message")
        if not (is_integer(self.n) and 1 <= self.n <= MAX_SAMPLES):
            raise ZweaveError(f"n must be an integer from 1 to {MAX_SAMPLES}, not {shortened(self.n)}")
        self._check_template_inputs()
        check_integer("max_tokens", self.max_tokens, 1)
        check_integer("min_tokens", self.min_tokens, 0)
        if self.min_tokens > self.max_tokens:
            raise ZweaveError(
                f"min_tokens must be at most max_tokens, {self.max_tokens}, not {self.min_tokens}"
            )
        if self.bad_words is not None:
            _check_bad_words(self.bad_words)
        if not isinstance(self.stop, str | Sequence | None) or not all(
            isinstance(text, str) and text for text in self.stop_strings
        ):
            raise ZweaveError("stop must be a non-empty string or a list of such")
        if any(map(has_lone_surrogate, self.stop_strings)):
            raise ZweaveError("a stop string holds a lone surrogate, which is no character: remove it")
        if self.stop_token_ids is not None:
            _check_ids("stop_token_ids", self.stop_token_ids)
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            check_flag(name, getattr(self, name))
        check_flag("raw", self.raw)
        object.__setattr__(self, "response_format", ResponseFormat.parse(self.response_format))
        if self.response_format is not None and self.ignore_eos:
            raise ZweaveError(
                "an answer in a response_format ends where it is complete: leave ignore_eos out"
            )
        if self.template is not None:
            check_name(self.template)
            if self.raw:
                raise ZweaveError("a raw prompt takes no template: leave one of the two out")
        if not isinstance(self.sampling, Sampling):
            raise ZweaveError(f"sampling must be a zweave.Sampling, not {type(self.sampling).__name__}")
        if self.n > 1 and not self.sampling.temperature:
            raise ZweaveError(f"{self.n} answers would be the same: give a temperature above 0, or n=1")
        if not is_integer(self.priority):
            raise ZweaveError(f"priority must be an integer, not {shortened(self.priority)}")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None and not (is_integer(count) and 0 <= count <= MAX_LOGPROBS):
                raise ZweaveError(
                    f"{name} must be an integer from 0 to {MAX_LOGPROBS}, not {shortened(count)}"
                )
        if self.salt is not None and not (isinstance(self.salt, str) and self.salt):
            raise ZweaveError(f"salt must be a non-empty string or None, not {type(self.salt).__name__}")
        if self.kv_reuse not in ("exact", "approximate"):
            raise ZweaveError(f"kv_reuse must be 'exact' or 'approximate', not {shortened(self.kv_reuse)}")
        check_flag("escape_special", self.escape_special)
        if self.add_special_tokens is not None:
            check_flag("add_special_tokens", self.add_special_tokens)
        _check_ids("score", self.score)

    def _check_template_inputs(self) -> None:
        for name, plain in (("tools", plain_tools), ("chat_template_kwargs", plain_template_kwargs)):
            value = getattr(self, name)
            if value is not None:
                if self.messages is None:
                    raise ZweaveError(f"{name} go into the chat template: give messages instead of a prompt")
                object.__setattr__(self, name, plain(value))

    @property
    def is_auto(self) -> bool:
        """Whether a dispatcher chooses the expert."""
        return isinstance(self.expert, str) and self.expert == "auto"

    @property
    def is_described(self) -> bool:
        """Whether an engine has to make an expert of a description first."""
        return isinstance(self.expert, Description) or isinstance(self.fallback, Description)

    @property
    def named_expert(self) -> ExpertChoice:
        """The expert; None where it is described and no engine has made and named it yet."""
        return None if isinstance(self.expert, Description) else self.expert

    @property
    def named_fallback(self) -> ExpertChoice:
        """The fallback; None where it is described and no engine has made and named it yet."""
        return None if isinstance(self.fallback, Description) else self.fallback

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def _check_ids(name: str, value: object) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        raise ZweaveError(f"{name} must be a list of token ids, not {type(value).__name__}")


def _check_bad_words(value: object) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ZweaveError(f"bad_words must be a list of texts, not {type(value).__name__}")
    for word in value:
        if not (isinstance(word, str) and word.strip()):
            raise ZweaveError(f"bad_words must be texts of more than spaces, not {shortened(word)}")


def _check_sequence(name: str, value: Any, wanted: str, item: str) -> None:
    if getattr(value, "ndim", 0) > 1:
        raise ZweaveError(f"{name} must be {wanted}, not of shape {list(value.shape)}: give one row of it")
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray):
        raise ZweaveError(f"{name} must be {wanted}, not {type(value).__name__}")
    if len(value) == 0:
        raise ZweaveError(f"{name} is empty: give at least one {item}")
