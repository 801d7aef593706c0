"""Chunks as the arrays of one step, a row a token, and as a schedule of layers."""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from ..model.layer_schedule import LayerEntry, LayerExit, LayerSchedule, StateCapture, StatePooling
from ..scheduler.chunk import Chunk


@dataclass(frozen=True, slots=True)
class StepArrays:
    """The tokens of chunks one after the other.

    token_ids: [T] int64; -1 for one that is sampled by a step in flight
    chunk: [T] int32, index of the token's chunk
    slot: [T] int32, row of the expert tables, 0 for the base model, or the place of one that the device chooses
    position: [T] int32, position in the sequence
    kv_index: [T] int64, cache position where the token's key and value go
    block_table: [chunks, n] int32, cache blocks of each chunk's sequence; unused entries are 0
    sampled: [n] int64, the rows after which a token is sampled
    """

    token_ids: npt.NDArray[np.int64]
    chunk: npt.NDArray[np.int32]
    slot: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    kv_index: npt.NDArray[np.int64]
    block_table: npt.NDArray[np.int32]
    sampled: npt.NDArray[np.int64]

    @classmethod
    def of(cls, chunks: Seq[Chunk], block_size: int) -> "StepArrays":
        row = np.repeat(np.arange(len(chunks), dtype=np.int32), [chunk.count for chunk in chunks])
        position = np.concatenate([np.arange(chunk.start, chunk.stop, dtype=np.int32) for chunk in chunks])
        slot = np.array([chunk.sequence.slot for chunk in chunks], dtype=np.int32)[row]
        adapted_from = np.array([chunk.sequence.adapted_from for chunk in chunks])[row]
        width = max(len(chunk.sequence.kv.block_table) for chunk in chunks)
        table = np.zeros((len(chunks), width), dtype=np.int32)
        for blocks, chunk in zip(table, chunks, strict=True):
            blocks[: len(chunk.sequence.kv.block_table)] = chunk.sequence.kv.block_table
        return cls(
            token_ids=np.concatenate([_token_ids(chunk) for chunk in chunks]),
            chunk=row,
            slot=np.where(position >= adapted_from, slot, np.int32(0)),
            position=position,
            kv_index=table[row, position // block_size].astype(np.int64) * block_size + position % block_size,
            block_table=table,
            sampled=np.array(
                [
                    stop - 1
                    for chunk, (_, stop) in zip(chunks, row_ranges(chunks), strict=True)
                    if chunk.complete
                ],
                dtype=np.int64,
            ),
        )


def row_ranges(chunks: Seq[Chunk]) -> list[tuple[int, int]]:
    """The rows [first, last) of each chunk in a batch that holds them one after the other."""
    lasts = accumulate(chunk.count for chunk in chunks)
    return [(last - chunk.count, last) for chunk, last in zip(chunks, lasts, strict=True)]


def layer_schedule(chunks: Seq[Chunk], num_layers: int) -> LayerSchedule:
    """Which rows of chunks go through which layers; their order must be one that LayerSchedule allows."""
    entries, captures, exits = [], [], []
    ranges = row_ranges(chunks)
    for chunk, (first, last) in zip(chunks, ranges, strict=True):
        states, exit_layer = chunk.entry_states, chunk.sequence.exit_layer
        if states is not None:
            entries.append(LayerEntry(chunk.entry_layer, first, states))
        captures += [StateCapture(layer, first, last) for layer in chunk.capture_layers]
        if exit_layer is not None:
            exits.append(LayerExit(exit_layer, first))
    return LayerSchedule.of(num_layers, ranges[-1][1], entries, captures, exits, _state_pooling(chunks))


def _state_pooling(chunks: Seq[Chunk]) -> StatePooling | None:
    """Where the states are pooled by which a device chooses, if there are such."""
    layers = {
        chunk.sequence.choice.pooling.layer for chunk in chunks if chunk.sequence.choice and chunk.pools
    }
    if not layers:
        return None
    (layer,) = layers
    late = late_chunks(chunks)
    starts = [first for chunk, (first, _) in zip(chunks, row_ranges(chunks), strict=True) if chunk in late]
    return StatePooling(layer, min(starts, default=sum(chunk.count for chunk in chunks)))


def late_chunks(chunks: Iterable[Chunk]) -> set[Chunk]:
    """The chunks whose expert is chosen in the same step, by the states of an earlier chunk of their sequence."""
    listed = list(chunks)
    choosing = {chunk.sequence for chunk in listed if chunk.chooses}
    return {chunk for chunk in listed if chunk.sequence in choosing and not chunk.pools}


def capture_schedule(chunks: Seq[Chunk], layers: Seq[int], num_layers: int) -> LayerSchedule:
    """All rows up to the highest of some layers, with the states of each chunk that enter each of them."""
    ranges = row_ranges(chunks)
    captures = {StateCapture(layer, first, last) for layer in layers for first, last in ranges}
    return LayerSchedule.of(
        num_layers, ranges[-1][1], captures=[*captures], exits=[LayerExit(max(layers), 0)]
    )


def _token_ids(chunk: Chunk) -> npt.NDArray[np.int64]:
    known = np.array(chunk.sequence.token_ids[chunk.start : chunk.stop], dtype=np.int64)
    return (
        known
        if len(known) == chunk.count
        else np.pad(known, (0, chunk.count - len(known)), constant_values=-1)
    )
