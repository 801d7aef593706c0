"""What a dispatcher is: it says what it has to know of a prompt, and chooses when it knows."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from zweave.mixture import Mixture
from zweave.request import Dispatch, ExpertChoice, Request
from zweave.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt whose expert is wanted.

    tokens: its ids. text_end: index of the first token that an `after_prompt` expert would act on.
    """

    request: Request
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
