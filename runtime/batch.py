"""The tensors of one step: all tokens of all chunks in one row list."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zweave.kernels import DecoderBatch
from zweave.sequence import Chunk


@dataclass(frozen=True, slots=True)
class Reading:
    """The states of the rows [first, last) as they enter a layer are wanted. ends: the rows go no further."""

    layer: int
    first: int
    last: int
    ends: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """tokens: [T] int64. places: their slots, positions and places in the cache; a row of the block table
    is a sequence's, its unused entries are 0 and never read. sampled: [rows] int64, the tokens whose logits
    are wanted. readings: in the order of the chunks; rows that end at a layer come after all that go further."""

    tokens: Tensor
    places: DecoderBatch
    sampled: Tensor
    readings: tuple[Reading, ...] = ()

    @classmethod
    def of(cls, chunks: Seq[Chunk], block_size: int, device: torch.device) -> "Batch":
        counts = np.array([chunk.count for chunk in chunks])
        row = np.repeat(np.arange(len(chunks)), counts)
        position = np.concatenate(
            [np.arange(c.sequence.computed, c.sequence.computed + c.count) for c in chunks]
        )
        tokens = np.concatenate(
            [c.sequence.tokens[c.sequence.computed : c.sequence.computed + c.count] for c in chunks]
        )
        slot = np.array([chunk.sequence.slot for chunk in chunks])[row]
        adapted_from = np.array([chunk.sequence.adapted_from for chunk in chunks])[row]
        table = np.zeros((len(chunks), max(len(c.sequence.blocks) for c in chunks)), dtype=np.int32)
        for blocks, chunk in zip(table, chunks, strict=True):
            blocks[: len(chunk.sequence.blocks)] = chunk.sequence.blocks
        kv_index = table[row, position // block_size].astype(np.int64) * block_size + position % block_size
        last = np.cumsum(counts) - 1

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
            readings=_readings(chunks),
        )


def _readings(chunks: Seq[Chunk]) -> tuple[Reading, ...]:
    found, row = [], 0
    for chunk in chunks:
        pooling = chunk.sequence.pooling
        if pooling is not None:
            found.append(Reading(pooling.layer, row, row + chunk.count, pooling.ends))
        row += chunk.count
    return tuple(found)
