"""What a dispatcher is: it says what it has to know of a prompt, and chooses when it knows."""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from torch import Tensor

from .errors import ZweaveError
from .experts.mixture import ExpertChoice, Mixture
from .text.tokenizer import Tokenizer
from .validation import is_number


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt whose expert is wanted.

    tokens: its ids. text_end: index of the first token that an `after_prompt` expert would act on.
    """

    tokens: Seq[int]
    text_end: int
    tokenizer: Tokenizer

    @property
    def text(self) -> str:
        """The words of the last user's turn."""
        start = self.tokenizer.user_text_start(self.tokens, self.text_end)
        return self.tokenizer.decode(self.tokens[start : self.text_end])


@dataclass(frozen=True, slots=True)
class ReadScores:
    """The natural log-probabilities of the tokens `score` after a prompt of the dispatcher's own.

    It is computed as a sequence of its own under `expert`, and shares keys and values with the request and with
    others as far as it begins like them.
    """

    tokens: Seq[int]
    score: Seq[int]
    expert: ExpertChoice = None

    def __post_init__(self) -> None:
        Mixture.parse(self.expert)


@dataclass(frozen=True, slots=True)
class ReadState:
    """The mean, over the prompt's tokens before `text_end`, of the base's state that enters a layer (from 1 on).

    It is read while the prompt is computed. candidates: what may be chosen; if all of these act on the prompt too,
    which has to be computed anew for them, the first pass goes no further than the layer.
    """

    layer: int
    candidates: Seq[ExpertChoice] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))


Look: TypeAlias = ReadScores | ReadState | None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What a first pass found out about a prompt, and which mixture answers it therefore.

    label: what the prompt was taken for, None if nobody asked.
    probabilities: of the labels it was chosen from.
    mixture: as `Request.expert` takes it; None is the base, which answers below a threshold, too.
    confidence: from 0 to 1.
    tokens: computed for the first pass alone; 0 where it read what the answer needs anyway.
    seconds: from the dispatcher's first call to its choice, whatever else the batch held meanwhile.
    error: why there was no choice.
    tokens and seconds tell of the way: records that differ in nothing else are equal.
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
        if not (is_number(self.confidence) and 0 <= self.confidence <= 1):
            raise ZweaveError(f"a dispatch's confidence must be from 0 to 1, not {self.confidence!r}")
        Mixture.parse(self.mixture)


class Dispatcher(Protocol):
    """Chooses the mixture for requests with expert="auto". Both methods may raise anything; what comes of that the
    engine's configuration says.

    A dispatcher with an attribute `blocking = False` promises to return at once: it runs on the engine's own thread.
    Any other runs on threads of its own, several requests at a time, and each call has `dispatch_timeout` seconds.
    """

    def look(self, prompt: Prompt) -> Look:
        """What the first pass has to find out; None for nothing."""
        ...

    def choose(self, prompt: Prompt, seen: Seq[float] | Tensor | None) -> Dispatch:
        """The choice. seen: the scores [len(score)], or the mean state [hidden] float32."""
        ...
