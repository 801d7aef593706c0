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
    top_layer: the number of layers, if log-probabilities of the prompt's tokens are wanted of what leaves the last one.
    """

    sequence: Sequence
    start: int
    count: int
    complete: bool = False
    cache_layers: tuple[int, ...] = ()
    top_layer: int | None = None

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def pools(self) -> bool:
        """Whether the device pools the chunk's states for a choice in flight."""
        choice = self.sequence.choice
        return choice is not None and self.start < choice.pooling.stop

    @property
    def chooses(self) -> bool:
        """Whether the device chooses the sequence's expert when it has pooled the chunk's states."""
        choice = self.sequence.choice
        return choice is not None and self.start < choice.pooling.stop == self.stop

    @property
    def num_generated(self) -> int:
        """Number of the sequence's tokens up to the end of the chunk that were sampled."""
        return max(0, self.stop - self.sequence.num_prompt_tokens)

    @property
    def generated(self) -> list[int]:
        """The sequence's tokens up to the end of the chunk that were sampled; all must be known."""
        return self.sequence.token_ids[self.sequence.num_prompt_tokens : self.stop]

    @property
    def prompt_targets(self) -> list[int]:
        """The prompt's tokens that follow those of the chunk, if their log-probabilities are wanted."""
        if self.top_layer is None:
            return []
        return self.sequence.token_ids[self.start + 1 : min(self.stop + 1, self.sequence.num_prompt_tokens)]

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
        if self.top_layer is not None:
            wanted.add(self.top_layer)
        return tuple(sorted(wanted))
