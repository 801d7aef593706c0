"""The edits of a step's logits on the device."""

from collections.abc import Sequence as Seq

from torch import Tensor

from ...scheduler.chunk import Chunk


class StepEdits:
    """What the requests of a step do to their rows; false if none does anything.

    All tokens that an edit has to know are known: a sequence with edits waits for them.

    complete: the chunks after which a token is sampled, in the order of the rows of logits.
    """

    def __init__(self, complete: Seq[Chunk]) -> None:
        self._rows = [
            (row, chunk.sequence.edits, chunk.generated)
            for row, chunk in enumerate(complete)
            if chunk.sequence.edits
        ]

    def __bool__(self) -> bool:
        return bool(self._rows)

    def edited(self, logits: Tensor) -> Tensor:
        """The logits to sample from; within the step's work."""
        if not self._rows:
            return logits
        edited = logits.clone()
        for row, edits, generated in self._rows:
            for edit in edits:
                edit.edit(edited[row], generated)
        return edited
