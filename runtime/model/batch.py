"""The tensors of one step: all tokens of all chunks in one row list."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zweave.kernels import DecoderBatch

from ..scheduler.chunk import Chunk


@dataclass(frozen=True, slots=True)
class Reading:
    """The states of the rows [first, last) as they enter a layer are wanted."""

    layer: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Entry:
    """The rows from `first` on go through no layer below this one: `states` [rows, hidden] float32 enter it."""

    layer: int
    first: int
    states: Tensor

    @property
    def last(self) -> int:
        return self.first + len(self.states)


@dataclass(frozen=True, slots=True)
class Exit:
    """The row `first` and all after it go through no layer from this one on."""

    layer: int
    first: int


@dataclass(frozen=True, slots=True)
class Batch:
    """tokens: [T] int64. places: their slots, positions and places in the cache; a row of the block table
    is a sequence's, its unused entries are 0 and never read. sampled: [rows] int64, the tokens whose logits
    are wanted. entries, readings, exits: in the order of the rows. Rows that enter late come before those that
    enter early, rows that end early after those that end late. readings: of each chunk, in the order of its
    `reads`."""

    tokens: Tensor
    places: DecoderBatch
    sampled: Tensor
    entries: tuple[Entry, ...] = ()
    readings: tuple[Reading, ...] = ()
    exits: tuple[Exit, ...] = ()

    @property
    def stops(self) -> list[int]:
        """The layers at which rows enter, end or are read, in their order."""
        layers = {entry.layer for entry in self.entries} | {reading.layer for reading in self.readings}
        return sorted(layers | {exit.layer for exit in self.exits})

    @classmethod
    def of(cls, chunks: Seq[Chunk], block_size: int, device: torch.device) -> "Batch":
        counts = np.array([chunk.count for chunk in chunks])
        row = np.repeat(np.arange(len(chunks)), counts)
        position = np.concatenate([np.arange(chunk.start, chunk.stop) for chunk in chunks])
        tokens = np.concatenate([chunk.sequence.token_ids[chunk.start : chunk.stop] for chunk in chunks])
        slot = np.array([chunk.sequence.slot for chunk in chunks])[row]
        adapted_from = np.array([chunk.sequence.adapted_from for chunk in chunks])[row]
        table = np.zeros((len(chunks), max(len(c.sequence.block_table) for c in chunks)), dtype=np.int32)
        for blocks, chunk in zip(table, chunks, strict=True):
            blocks[: len(chunk.sequence.block_table)] = chunk.sequence.block_table
        kv_index = table[row, position // block_size].astype(np.int64) * block_size + position % block_size
        first = np.cumsum(counts) - counts
        last = first + counts - 1

        def tensor(values: np.ndarray, dtype: type) -> Tensor:
            return torch.from_numpy(values.astype(dtype, copy=False)).to(device)

        return cls(
            tokens=tensor(tokens, np.int64),
            places=DecoderBatch(
                slot=tensor(np.where(position >= adapted_from, slot, 0), np.int32),
                sequence=tensor(row, np.int32),
                position=tensor(position, np.int32),
                kv_index=tensor(kv_index, np.int64),
                block_table=tensor(table, np.int32),
            ),
            sampled=tensor(last[[chunk.complete for chunk in chunks]], np.int64),
            entries=tuple(
                Entry(chunk.entry_layer, int(row), states)
                for chunk, row in zip(chunks, first, strict=True)
                if (states := chunk.entry_states) is not None
            ),
            readings=tuple(
                Reading(layer, int(row), int(row) + chunk.count)
                for chunk, row in zip(chunks, first, strict=True)
                for layer in chunk.capture_layers
            ),
            exits=tuple(
                Exit(chunk.sequence.exit_layer, int(row))
                for chunk, row in zip(chunks, first, strict=True)
                if chunk.sequence.exit_layer is not None
            ),
        )
