"""Some of a sequence's next tokens: what a step computes of it."""

from dataclasses import dataclass

from torch import Tensor

from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some of a sequence's next tokens, all of which enter at one layer; the step samples if they reach its end.

    start: position of the first. keeps: the layers whose states, as they enter, are kept for others.
    """

    sequence: Sequence
    start: int
    count: int
    keeps: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def complete(self) -> bool:
        return self.sequence.pooling is None and self.stop == len(self.sequence.tokens)

    @property
    def enters(self) -> int:
        """The layer that the tokens go through first."""
        below = self.sequence.below
        return below.layer if below is not None and below.start <= self.start < below.stop else 0

    @property
    def entering(self) -> Tensor | None:
        """Their states at a layer above the first that they enter."""
        below = self.sequence.below
        return below.between(self.start, self.stop) if below is not None and self.enters else None

    @property
    def reads(self) -> tuple[int, ...]:
        """The layers whose states, as they enter, are wanted, in their order."""
        pooling, wanted = self.sequence.pooling, set(self.keeps)
        if pooling is not None:
            wanted |= {pooling.layer, pooling.ends or pooling.layer}
        return tuple(sorted(wanted))
