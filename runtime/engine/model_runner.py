"""Runs chunks of sequences through the model: chunks in, logits and captured states out."""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from zweave.kernels import DecoderMetadata

from ..model.batch import Batch
from ..model.layer_schedule import LayerEntry, LayerExit, LayerSchedule, StateCapture
from ..scheduler.chunk import Chunk


def row_ranges(chunks: Iterable[Chunk]) -> list[tuple[int, int]]:
    """The rows [first, last) of each chunk in a batch that holds them one after the other."""
    lasts = accumulate(chunk.count for chunk in chunks)
    return [(last - chunk.count, last) for chunk, last in zip(chunks, lasts, strict=True)]


def build_batch(chunks: Seq[Chunk], num_layers: int, block_size: int, device: torch.device) -> Batch:
    """The tensors of chunks, one after the other. Those that enter late come first, those that exit early last."""
    ranges = row_ranges(chunks)
    sampled = [last - 1 for chunk, (_, last) in zip(chunks, ranges, strict=True) if chunk.complete]
    token_ids = np.concatenate([chunk.sequence.token_ids[chunk.start : chunk.stop] for chunk in chunks])
    return Batch(
        token_ids=_tensor(token_ids, np.int64, device),
        meta=_metadata(chunks, block_size, device),
        sampled=_tensor(np.array(sampled), np.int64, device),
        schedule=_layer_schedule(chunks, ranges, num_layers),
    )


def _metadata(chunks: Seq[Chunk], block_size: int, device: torch.device) -> DecoderMetadata:
    row = np.repeat(np.arange(len(chunks)), [chunk.count for chunk in chunks])
    position = np.concatenate([np.arange(chunk.start, chunk.stop) for chunk in chunks])
    slot = np.array([chunk.sequence.slot for chunk in chunks])[row]
    adapted_from = np.array([chunk.sequence.adapted_from for chunk in chunks])[row]
    table = np.zeros((len(chunks), max(len(c.sequence.kv.block_table) for c in chunks)), dtype=np.int32)
    for blocks, chunk in zip(table, chunks, strict=True):
        blocks[: len(chunk.sequence.kv.block_table)] = chunk.sequence.kv.block_table
    kv_index = table[row, position // block_size].astype(np.int64) * block_size + position % block_size
    return DecoderMetadata(
        slot=_tensor(np.where(position >= adapted_from, slot, 0), np.int32, device),
        seq_index=_tensor(row, np.int32, device),
        position=_tensor(position, np.int32, device),
        kv_index=_tensor(kv_index, np.int64, device),
        block_table=_tensor(table, np.int32, device),
    )


def _layer_schedule(chunks: Seq[Chunk], ranges: Seq[tuple[int, int]], num_layers: int) -> LayerSchedule:
    entries, captures, exits = [], [], []
    for chunk, (first, last) in zip(chunks, ranges, strict=True):
        states, exit_layer = chunk.entry_states, chunk.sequence.exit_layer
        if states is not None:
            entries.append(LayerEntry(chunk.entry_layer, first, states))
        captures += [StateCapture(layer, first, last) for layer in chunk.capture_layers]
        if exit_layer is not None:
            exits.append(LayerExit(exit_layer, first))
    return LayerSchedule.of(num_layers, ranges[-1][1], entries, captures, exits)


def _tensor(values: np.ndarray, dtype: type, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(dtype, copy=False)).to(device)
