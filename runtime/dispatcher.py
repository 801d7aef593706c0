"""The dispatcher protocol: it names what to probe about a prompt, then chooses the mixture that answers it."""

import warnings
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from .errors import ZweaveError
from .experts.mixture import ExpertChoice, Mixture
from .text.tokenizer import Tokenizer
from .validation import as_integer, as_number, is_number, normalise


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt whose expert is to be chosen.

    tokens: its token ids.
    text_end: index of the first token that an `after_prompt` expert would act on.
    tokenizer: the model's.
    """

    tokens: Seq[int]
    text_end: int
    tokenizer: Tokenizer

    @property
    def text(self) -> str:
        """The text of the last user turn."""
        start = self.tokenizer.user_text_start(self.tokens, self.text_end)
        return self.tokenizer.decode(self.tokens[start : self.text_end])


@dataclass(frozen=True, slots=True)
class ReadScores:
    """A probe: the natural log-probabilities of some tokens after a prompt of the dispatcher's own.

    It runs as a sequence of its own and shares the KV cache of equal prefixes with the request and all others.

    tokens: the prompt.
    score: the token ids whose log-probabilities are wanted.
    expert: the expert that reads the prompt; None is the base model.
    """

    tokens: Seq[int]
    score: Seq[int]
    expert: ExpertChoice = None

    def __post_init__(self) -> None:
        Mixture.parse(self.expert)


class StateClassifier(Protocol):
    """A choice by the mean state alone, in operations on tensors: a GPU makes it where it has computed the state.

    The likeliest label's expert answers, the first one's of equals, and the base model if the label's probability is
    below the threshold.
    """

    @property
    def width(self) -> int:
        """Numbers of a state."""

    @property
    def experts(self) -> Seq[ExpertChoice]:
        """The expert of each label; None is the base model."""

    @property
    def threshold(self) -> float:
        """A probability from 0 to 1."""

    def to(self, device: torch.device) -> "StateClassifier":
        """The same with its tensors on a device."""

    def probabilities(self, states: Tensor) -> Tensor:
        """[prompts, labels] float32 for states [prompts, width] float32, on their device and without waiting for it."""

    def dispatch(self, probabilities: Seq[float]) -> "Dispatch":
        """The choice for the probabilities of the labels; ZweaveError if one is not finite."""


@dataclass(frozen=True, slots=True)
class ReadState:
    """A probe: the base model's mean hidden state that enters a layer, over the prompt's tokens before `text_end`.

    It is read while the prompt is computed.

    layer: the layer, from 1 on.
    candidates: the experts that may be chosen. If all of them act on the prompt too, which is then computed again under
        the chosen one, the first pass computes no more layers than it has to.
    classifier: chooses what `choose` would; on a GPU it may be asked instead, so that nobody waits (docs/dispatch.md).
    """

    layer: int
    candidates: Seq[ExpertChoice] = ()
    classifier: StateClassifier | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        normalise(self, ("layer",), as_integer)


Probe: TypeAlias = ReadScores | ReadState | None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What a dispatcher chose for a prompt, and why.

    Two records are equal if all but `tokens` and `seconds` is.

    label: what the prompt was taken for; None if nothing was probed.
    probabilities: of the labels that it was chosen from.
    mixture: the chosen expert, as `Request.expert` takes it; None is the base model, also chosen below a threshold. A
        result has the request's fallback in place of that.
    confidence: from 0 to 1.
    tokens: tokens computed for the first pass alone; 0 where the answer reuses all of them.
    seconds: time from the dispatcher's first call to its choice, other work of the batch included.
    error: why there was no choice.
    """

    label: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    mixture: ExpertChoice = None
    confidence: float = 1.0
    tokens: int = field(default=0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    error: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.label, str | None):
            raise ZweaveError(f"a dispatch's label must be a string or None, not {type(self.label).__name__}")
        if not isinstance(self.probabilities, Mapping):
            raise ZweaveError("a dispatch's probabilities must be a mapping of labels to numbers")
        normalise(self, ("confidence",), as_number)
        if not (is_number(self.confidence) and 0 <= self.confidence <= 1):
            raise ZweaveError(f"a dispatch's confidence must be from 0 to 1, not {self.confidence!r}")
        Mixture.parse(self.mixture)


class Dispatcher(Protocol):
    """Chooses the mixture for requests with expert="auto".

    Both methods may raise anything; `EngineConfig.on_dispatch_error` says what follows. They run on threads, several
    requests at a time, and each call has `dispatch_timeout` seconds. A dispatcher with an attribute `blocking = False`
    promises to return at once and runs on the engine's own thread.
    """

    def probe(self, prompt: Prompt) -> Probe:
        """What the first pass has to compute; None for nothing."""
        ...

    def choose(self, prompt: Prompt, evidence: Seq[float] | Tensor | None) -> Dispatch:
        """The choice.

        evidence: what the probe gave: the scores [len(score)], the mean state [hidden] float32, or None.
        """
        ...


class RenamedLook:
    """Keeps `look`, the former name of `probe`, for those who call it on a built-in strategy."""

    def look(self, prompt: Prompt) -> Any:
        _warn_of_look(stacklevel=3)
        dispatcher: Any = self
        return dispatcher.probe(prompt)


def probe_method(dispatcher: object) -> Callable[[Prompt], object] | None:
    """The dispatcher's `probe`, or with a DeprecationWarning its `look`, as the method was called before.

    Where both are there, as in a subclass of a built-in strategy, the one that overrides the other is taken.
    Returns None for an object with neither.
    """
    for namespace in (getattr(dispatcher, "__dict__", {}), *map(vars, type(dispatcher).__mro__)):
        name = next((name for name in ("probe", "look") if name in namespace), None)
        if name is not None:
            break
    else:
        # It may forward attributes to another object.
        name = "probe" if hasattr(dispatcher, "probe") else "look"
    method = getattr(dispatcher, name, None)
    if not callable(method):
        return None
    if name == "look":
        _warn_of_look(stacklevel=3)
    return method


def _warn_of_look(stacklevel: int) -> None:
    message = "a dispatcher's method look(prompt) is now called probe(prompt): rename it"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
