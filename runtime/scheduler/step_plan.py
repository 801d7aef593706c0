"""The tokens that a step computes of each sequence, within the token budget."""

from collections.abc import Iterator

from .sequence import Sequence


class StepPlan:
    """Token counts of sequences, in the order in which they are added.

    num_free_tokens: what is left of the budget.
    """

    def __init__(self, max_tokens: int) -> None:
        self.num_free_tokens = max_tokens
        self._counts: dict[Sequence, int] = {}

    def __iter__(self) -> Iterator[tuple[Sequence, int]]:
        return iter(self._counts.items())

    def count_for(self, sequence: Sequence) -> int:
        """Number of the sequence's pending tokens that fit in the budget."""
        return min(sequence.num_pending_tokens, self.num_free_tokens)

    def add(self, sequence: Sequence, count: int) -> None:
        self._counts[sequence] = count
        self.num_free_tokens -= count

    def drop(self, sequence: Sequence) -> None:
        """Takes a sequence out, if it is in, and returns its tokens to the budget."""
        self.num_free_tokens += self._counts.pop(sequence, 0)
