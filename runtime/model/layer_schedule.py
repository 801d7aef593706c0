"""Which rows of a batch go through which layers, and where hidden states are put in or read out.

A hidden state [hidden] "enters" a layer: it is the residual stream of a token before that layer works on it.
Most batches have one segment, all rows through all layers. It takes more where a request resumes from cached states
(a `LayerEntry`), where a first pass stops early (a `LayerExit`), or where states are wanted (a `StateCapture`, or a
`StatePooling`).
"""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerEntry:
    """Rows that skip the layers below one, whose keys and values are cached already.

    layer: the first layer that they go through
    first: the first of the rows
    states: [rows, hidden] float32, what enters the layer
    """

    layer: int
    first: int
    states: Tensor

    @property
    def last(self) -> int:
        return self.first + len(self.states)


@dataclass(frozen=True, slots=True)
class StateCapture:
    """Asks for the states of the rows [first, last) as they enter a layer.

    layer: from 1 on; the model's number of layers stands for the output of the last one
    """

    layer: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class LayerExit:
    """The row `first` and all after it skip `layer` and the layers above."""

    layer: int
    first: int


@dataclass(frozen=True, slots=True)
class StatePooling:
    """States are pooled as they enter `layer`, and rows wait for what follows from them.

    late_row: this row and all after it go through the layers below `layer` after the pooling, the rows before it before
    """

    layer: int
    late_row: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of layers through which the same rows go.

    first_layer, stop_layer: layers [first_layer, stop_layer)
    first_row, stop_row: rows [first_row, stop_row)
    entries: rows that join here
    captures: states to read as they enter `first_layer`
    pools: whether states are pooled before the segment
    """

    first_layer: int
    stop_layer: int
    first_row: int
    stop_row: int
    entries: tuple[LayerEntry, ...] = ()
    captures: tuple[StateCapture, ...] = ()
    pools: bool = False

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.stop_row)

    @property
    def num_rows(self) -> int:
        return self.stop_row - self.first_row

    def begin(self, x: Tensor, residual: Tensor) -> Mapping[StateCapture, Tensor]:
        """Writes the states of `entries` and returns those of `captures`, [rows, hidden] float32.

        x, residual: [T, hidden], changed in place; the state of a row is the sum of the two
        """
        for entry in self.entries:
            x[entry.first : entry.last] = 0
            residual[entry.first : entry.last] = entry.states
        return {
            capture: residual[capture.first : capture.last] + x[capture.first : capture.last].float()
            for capture in self.captures
        }


@dataclass(frozen=True, slots=True)
class LayerSchedule:
    """The segments of a batch in the order in which they run; the last one ends at the model's last layer."""

    segments: tuple[Segment, ...]

    @classmethod
    def of(
        cls,
        num_layers: int,
        num_rows: int,
        entries: Seq[LayerEntry] = (),
        captures: Seq[StateCapture] = (),
        exits: Seq[LayerExit] = (),
        pooling: StatePooling | None = None,
    ) -> "LayerSchedule":
        """Cuts the layers wherever rows enter, exit, are captured or pooled.

        The rows of a segment must be contiguous: rows with a higher entry layer come before those with a lower one,
        rows that wait for a pooling after those that enter, and rows with a lower exit layer after those with a higher
        one.
        """
        plan = _Plan(entries, captures, exits, num_rows)
        if pooling is None:
            return cls(tuple(plan.segments(0, num_layers, 0, num_rows, is_last=True)))
        layer, late_row = pooling.layer, pooling.late_row
        early = plan.segments(0, layer, 0, late_row)
        late = plan.segments(0, layer, late_row, num_rows) if late_row < num_rows else []
        first, *rest = [*late, *plan.segments(layer, num_layers, 0, num_rows, is_last=True)]
        return cls((*early, replace(first, pools=True), *rest))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What happens to the rows of a batch."""

    entries: Seq[LayerEntry]
    captures: Seq[StateCapture]
    exits: Seq[LayerExit]
    num_rows: int

    def segments(
        self, first_layer: int, stop_layer: int, first_row: int, stop_row: int, is_last: bool = False
    ) -> list[Segment]:
        """Rows [first_row, stop_row) through layers [first_layer, stop_layer).

        is_last: whether states that enter `stop_layer`, which is the top, are captured, too
        """
        cuts = {part.layer for parts in (self.entries, self.captures, self.exits) for part in parts}
        inner = {cut for cut in cuts if first_layer < cut < stop_layer + is_last}
        return [
            self._segment(layer, next_cut, first_row, stop_row)
            for layer, next_cut in pairwise([first_layer, *sorted(inner), stop_layer])
        ]

    def _segment(self, layer: int, next_cut: int, first_row: int, stop_row: int) -> Segment:
        rows = range(first_row, stop_row)
        joined = max((entry.last for entry in self.entries if entry.layer > layer), default=0)
        left = min((exit.first for exit in self.exits if exit.layer <= layer), default=self.num_rows)
        return Segment(
            layer,
            next_cut,
            max(joined, first_row),
            max(min(left, stop_row), max(joined, first_row)),
            tuple(entry for entry in self.entries if entry.layer == layer and entry.first in rows),
            tuple(capture for capture in self.captures if capture.layer == layer and capture.first in rows),
        )
