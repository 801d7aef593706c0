"""Which rows of a batch go through which layers, and where hidden states are put in or read out.

A hidden state [hidden] "enters" a layer: it is the residual stream of a token before that layer works on it.
Most batches have one segment, all rows through all layers. It takes more where a request resumes from cached states
(a `LayerEntry`), where a first pass stops early (a `LayerExit`), or where states are wanted (a `StateCapture`).
"""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
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
class Segment:
    """A run of layers through which the same rows go.

    first_layer, stop_layer: layers [first_layer, stop_layer)
    first_row, stop_row: rows [first_row, stop_row)
    entries: rows that join here
    captures: states to read as they enter `first_layer`
    """

    first_layer: int
    stop_layer: int
    first_row: int
    stop_row: int
    entries: tuple[LayerEntry, ...] = ()
    captures: tuple[StateCapture, ...] = ()

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
    """The segments of a batch, from the lowest layer up; the last one ends at the model's last layer."""

    segments: tuple[Segment, ...]

    @classmethod
    def of(
        cls,
        num_layers: int,
        num_rows: int,
        entries: Seq[LayerEntry] = (),
        captures: Seq[StateCapture] = (),
        exits: Seq[LayerExit] = (),
    ) -> "LayerSchedule":
        """Cuts the layers wherever rows enter, exit or are captured.

        The rows of a segment must be contiguous: rows with a higher entry layer come before those with a lower one,
        and rows with a lower exit layer come after those with a higher one.
        """
        cuts = sorted({0} | {part.layer for parts in (entries, captures, exits) for part in parts})
        first, last = max((entry.last for entry in entries), default=0), num_rows
        segments = []
        for layer, next_cut in pairwise([*cuts, num_layers]):
            entering = tuple(entry for entry in entries if entry.layer == layer)
            first = min((entry.first for entry in entering), default=first)
            last = min((exit.first for exit in exits if exit.layer == layer), default=last)
            captured = tuple(capture for capture in captures if capture.layer == layer)
            segments.append(Segment(layer, next_cut, first, last, entering, captured))
        return cls(tuple(segments))
