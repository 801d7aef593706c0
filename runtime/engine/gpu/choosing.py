"""Choices of experts on the device: states are pooled, classified, and turned into slots, without the host."""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from ...dispatcher import StateClassifier
from ...scheduler.choice import Choice
from ...scheduler.chunk import Chunk
from ..step_arrays import row_ranges
from .backend import Backend
from .packing import Array


@dataclass(frozen=True, slots=True)
class _PooledChunk:
    """A chunk whose states are pooled.

    index: in the batch
    start: its first row in the batch
    """

    chunk: Chunk
    choice: Choice
    index: int
    start: int

    @property
    def row(self) -> int:
        assert self.choice.row is not None
        return self.choice.row

    @property
    def needs_seed(self) -> bool:
        """Whether the sum begins with states from the prefix cache."""
        return self.chunk.start == self.choice.num_found > 0


@dataclass(frozen=True, slots=True)
class ChoiceInput:
    """What a step pools and chooses.

    arrays: by name, for the step's copy to the device
    seeds: states of the tokens that were found in the prefix cache, in parts [tokens, hidden]; for sums that begin
    classifier: of all choices; None if the step pools nothing
    choosing: indices of the chunks that choose, in the order of the choices
    """

    arrays: Mapping[str, Array]
    seeds: Seq[Tensor]
    classifier: StateClassifier | None
    choosing: Seq[int]

    @classmethod
    def of(cls, chunks: Seq[Chunk]) -> "ChoiceInput":
        """chunks: in the order of the batch."""
        pooled = [
            _PooledChunk(chunk, chunk.sequence.choice, index, start)
            for index, (chunk, (start, _)) in enumerate(zip(chunks, row_ranges(chunks), strict=True))
            if chunk.sequence.choice is not None and chunk.pools
        ]
        if not pooled:
            return cls({}, (), None, ())
        seeded = [part for part in pooled if part.needs_seed]
        chosen = [part for part in pooled if part.chunk.chooses]
        num_found = [part.choice.num_found for part in seeded]
        arrays = {
            "pool_position": _integers([part.chunk.start for part in pooled]),
            "pool_start": _integers([*(part.start for part in pooled), 0]),
            "pool_row": _integers([part.row for part in pooled]),
            "pool_first": _integers([part.chunk.start == 0 for part in pooled]),
            "pool_count": _integers([part.chunk.count for part in pooled]),
            "seed_start": _integers([0, *accumulate(num_found)]),
            "seed_row": _integers([part.row for part in seeded]),
            "seed_first": _integers([1] * len(seeded)),
            "seed_count": _integers(num_found),
            "choice_row": np.array([part.row for part in chosen], dtype=np.int64),
            "choice_tokens": np.array([part.chunk.stop for part in chosen], dtype=np.int64),
            "choice_slots": np.array([part.choice.slots for part in chosen], dtype=np.int64),
        }
        seeds = [states for part in seeded for states in part.choice.seed]
        return cls(arrays, seeds, pooled[0].choice.classifier, [part.index for part in chosen])


def _integers(values: Seq[int]) -> Array:
    return np.array(values, dtype=np.int32)


class ExpertChooser:
    """The device's state of choices, a row for each that is in flight.

    slot_of: [num_slots + num_rows] int32: the bank's slots themselves, then the chosen slot of each row.
    """

    def __init__(self, num_slots: int, num_rows: int, hidden: int, backend: Backend) -> None:
        device = backend.device
        self.slot_of = torch.arange(num_slots + num_rows, dtype=torch.int32, device=device)
        self._num_slots = num_slots
        self._sums = torch.zeros(num_rows, hidden, dtype=torch.float64, device=device)
        self._num_pooled = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._ops = backend.ops
        self._latest: tuple[StateClassifier, StateClassifier] | None = None

    def on_device(self, classifier: StateClassifier) -> StateClassifier:
        """A classifier with its tensors on the device; the latest one is kept."""
        if self._latest is None or self._latest[0] is not classifier:
            self._latest = classifier, classifier.to(self.slot_of.device)
        return self._latest[1]

    def pool(self, fields: Mapping[str, Tensor], seeds: Seq[Tensor], x: Tensor, residual: Tensor) -> None:
        """Adds a step's states to the sums, those of a chunk unless it does not continue its sum.

        x, residual: [T, hidden], whose sum is a state
        """
        if seeds:
            states = torch.cat(list(seeds))
            start, row, first, count = _named(fields, "seed")
            self._ops.pool_states(states, torch.zeros_like(states), self._sums, start, row, first, count)
            self._num_pooled.index_copy_(0, row.long(), count)
        start, row, first, count = _named(fields, "pool")
        position = fields["pool_position"]
        # A step that failed when this was done is launched again, and nothing is to be added twice.
        continues = (self._num_pooled.index_select(0, row) == position) | (first > 0)
        self._ops.pool_states(x, residual, self._sums, start, row, first, count * continues)
        self._num_pooled.index_copy_(0, row.long(), position + count)

    def choose(self, fields: Mapping[str, Tensor], classifier: StateClassifier) -> tuple[Tensor, Tensor]:
        """Writes the chosen slots to `slot_of`; returns them, [n] int64, and the probabilities [n, labels] float32.

        classifier: on the device
        """
        row = fields["choice_row"]
        means = (self._sums.index_select(0, row) / fields["choice_tokens"][:, None]).float()
        probabilities = classifier.probabilities(means)
        likeliest = probabilities.argmax(dim=1, keepdim=True)
        is_unsure = probabilities.gather(1, likeliest).double() < classifier.threshold
        # A choice that means nothing is an error, which the host finds: until then the base model answers.
        is_base = is_unsure.squeeze(1) | ~probabilities.isfinite().all(dim=1)
        slots = fields["choice_slots"].gather(1, likeliest).squeeze(1) * ~is_base
        self.slot_of.index_copy_(0, self._num_slots + row, slots.int())
        return slots, probabilities


def _named(fields: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    """The arguments of `pool_states` behind the sums."""
    return [fields[f"{prefix}_{name}"] for name in ("start", "row", "first", "count")]
