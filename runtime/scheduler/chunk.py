"""Consecutive tokens of a sequence that a step computes."""

from dataclasses import dataclass

from torch import Tensor

from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of a sequence, all of which enter the model at one layer.

    start: position of the first token.
    count: number of tokens.
    complete: whether a token is sampled after the chunk, the next one of its sequence.
    cache_layers: layers whose input states of these tokens are stored for the prefix cache.
    """

    sequence: Sequence
    start: int
    count: int
    complete: bool = False
    cache_layers: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def num_generated(self) -> int:
        """Number of the sequence's tokens up to the end of the chunk that were sampled."""
        return max(0, self.stop - self.sequence.num_prompt_tokens)

    @property
    def generated(self) -> list[int]:
        """The sequence's tokens up to the end of the chunk that were sampled; all must be known."""
        return self.sequence.token_ids[self.sequence.num_prompt_tokens : self.stop]

    @property
    def entry_layer(self) -> int:
        """The first layer that the tokens go through."""
        below = self.sequence.kv.partial_states
        return below.layer if below is not None and below.start <= self.start < below.stop else 0

    @property
    def entry_states(self) -> Tensor | None:
        """The states that enter `entry_layer`; None if that is the first layer."""
        below = self.sequence.kv.partial_states
        return below.between(self.start, self.stop) if below is not None and self.entry_layer else None

    @property
    def capture_layers(self) -> tuple[int, ...]:
        """The layers whose input states the step returns, in ascending order."""
        pooling, wanted = self.sequence.pooling, set(self.cache_layers)
        if pooling is not None:
            wanted |= {pooling.layer, pooling.exit_layer or pooling.layer}
        return tuple(sorted(wanted))
