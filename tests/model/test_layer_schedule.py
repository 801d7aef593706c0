"""A schedule gives every row the layers from its entry to its exit, and captures what it is asked for."""

import torch
from torch import Tensor

from zweave.model import LayerEntry, LayerExit, LayerSchedule, StateCapture, StatePooling

LAYERS, HIDDEN = 6, 3


def run(schedule: LayerSchedule, rows: int) -> tuple[Tensor, dict[StateCapture, Tensor]]:
    """Each layer adds its number to x, the layer before it added to the residual stream."""
    x, residual = torch.zeros(rows, HIDDEN), torch.zeros(rows, HIDDEN)
    states = {}
    for segment in schedule.segments:
        states |= segment.begin(x, residual)
        for layer in range(segment.first_layer, segment.stop_layer):
            residual[segment.rows] += x[segment.rows]
            x[segment.rows] = 10.0**layer
    return residual + x, states


def test_all_rows_through_all_layers_is_one_segment() -> None:
    (segment,) = LayerSchedule.of(LAYERS, 4).segments
    assert (segment.first_layer, segment.stop_layer, segment.rows) == (0, LAYERS, slice(0, 4))


def test_rows_enter_and_exit_at_their_layers() -> None:
    entries = [
        LayerEntry(4, 0, torch.full((2, HIDDEN), 0.5)),
        LayerEntry(2, 2, torch.full((1, HIDDEN), 0.25)),
    ]
    exits = [LayerExit(3, 4), LayerExit(1, 6)]
    final, _ = run(LayerSchedule.of(LAYERS, 7, entries, exits=exits), 7)
    assert final[:, 0].tolist() == [110000.5, 110000.5, 111100.25, 111111, 111, 111, 1]


def test_states_are_captured_as_they_enter() -> None:
    entry, exit_ = LayerEntry(2, 0, torch.full((1, HIDDEN), 0.5)), LayerExit(3, 2)
    captures = [StateCapture(2, 0, 1), StateCapture(6, 0, 2), StateCapture(3, 2, 4), StateCapture(1, 1, 4)]
    _, states = run(LayerSchedule.of(LAYERS, 4, [entry], captures, [exit_]), 4)
    assert {capture: state[:, 0].tolist() for capture, state in states.items()} == {
        StateCapture(1, 1, 4): [1, 1, 1],
        StateCapture(2, 0, 1): [0.5],
        StateCapture(3, 2, 4): [111, 111],
        StateCapture(6, 0, 2): [111100.5, 111111],
    }


def test_nothing_runs_where_all_rows_have_left() -> None:
    *lower, top = LayerSchedule.of(
        LAYERS, 3, captures=[StateCapture(2, 0, 3)], exits=[LayerExit(2, 0)]
    ).segments
    assert [(segment.first_layer, segment.stop_layer, segment.num_rows) for segment in lower] == [(0, 2, 3)]
    assert top.num_rows == 0 and len(top.captures) == 1


def test_rows_wait_for_the_pooling_of_others() -> None:
    pooling, captures = StatePooling(2, 3), [StateCapture(1, 1, 3), StateCapture(2, 0, 3)]
    entry, exit_ = LayerEntry(3, 0, torch.full((1, HIDDEN), 0.5)), LayerExit(1, 5)
    schedule = LayerSchedule.of(LAYERS, 6, [entry], captures, [exit_], pooling)
    parts = [(part.first_layer, part.stop_layer, part.first_row, part.stop_row) for part in schedule.segments]
    assert parts == [(0, 1, 1, 3), (1, 2, 1, 3), (0, 1, 3, 6), (1, 2, 3, 5), (2, 3, 1, 5), (3, 6, 0, 5)]
    assert [part.pools for part in schedule.segments] == [False, False, True, False, False, False]
    final, states = run(schedule, 6)
    assert final[:, 0].tolist() == [111000.5, 111111, 111111, 111111, 111111, 1]
    assert states[StateCapture(1, 1, 3)][:, 0].tolist() == [1, 1]
    assert states[StateCapture(2, 0, 3)][:, 0].tolist() == [0, 11, 11]
    assert LayerSchedule.of(LAYERS, 3, pooling=StatePooling(LAYERS, 3)).segments[-1].pools
