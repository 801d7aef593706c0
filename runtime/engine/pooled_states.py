"""Mean hidden states of the layers' inputs: what a cheap classifier looks at."""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ZweaveError
from ..kv_cache.running_sums import running_sums
from ..model.batch import Batch
from ..model.layer_schedule import LayerExit, LayerSchedule, StateCapture
from ..model.model import Model
from ..scheduler.block_manager import BlockManager
from ..scheduler.chunk import Chunk
from ..scheduler.sequence import Sequence
from .model_runner import build_batch, row_ranges


def check_layers(layers: Seq[int], count: int) -> None:
    """Raises ZweaveError unless a model of `count` layers has states that enter these layers."""
    if not layers or not all(1 <= layer <= count for layer in layers):
        raise ZweaveError(f"layers are from 1 to {count}, one or more")


def pooled_states(
    model: Model, blocks: BlockManager, sequences: Seq[Sequence], layers: Seq[int], max_tokens: int
) -> Tensor:
    """Mean over each sequence's tokens of the base model's state that enters each layer.

    layers: from 1 (what the first layer gives) to the model's number of layers, in any order; those above the
    last one asked for are not computed. max_tokens: of a batch, unless one sequence alone has more.
    Returns [layers, sequences, hidden] float32. Raises ZweaveError when other requests have taken the cache.
    """
    parts = [_pooled(model, blocks, batch, layers) for batch in _batches(sequences, blocks, max_tokens)]
    if not parts:
        raise ZweaveError("there is no prompt: give at least one")
    return torch.cat(parts, dim=1)


def _blocks_for(tokens: int, blocks: BlockManager) -> int:
    return -(-tokens // blocks.block_size)


def _batches(
    sequences: Iterable[Sequence], blocks: BlockManager, max_tokens: int
) -> Iterator[list[Sequence]]:
    """Sequences together as long as a batch and the cache hold them; one at least."""
    batch: list[Sequence] = []
    tokens = needed = 0
    for sequence in sequences:
        size = len(sequence.token_ids)
        more = _blocks_for(size, blocks)
        if batch and (tokens + size > max_tokens or needed + more > blocks.num_available):
            yield batch
            batch, tokens, needed = [], 0, 0
        batch.append(sequence)
        tokens, needed = tokens + size, needed + more
    if batch:
        yield batch


@torch.inference_mode()
def _pooled(model: Model, blocks: BlockManager, sequences: Seq[Sequence], layers: Seq[int]) -> Tensor:
    counts = [len(sequence.token_ids) for sequence in sequences]
    needed = [_blocks_for(count, blocks) for count in counts]
    if sum(needed) > blocks.num_available:
        raise ZweaveError("the cache is taken by other requests: let them finish or give more kv_tokens")
    taken = blocks.take_blocks(sum(needed))
    try:
        rest = iter(taken)
        for sequence, count in zip(sequences, needed, strict=True):
            sequence.slot = 0
            sequence.kv.block_table = [next(rest) for _ in range(count)]
        chunks = [Chunk(sequence, 0, count) for sequence, count in zip(sequences, counts, strict=True)]
        batch = build_batch(chunks, model.config.num_layers, blocks.block_size, model.embedding.device)
        return _means(model, batch, row_ranges(chunks), layers)
    finally:
        blocks.return_blocks(taken)


def _means(model: Model, batch: Batch, ranges: Seq[tuple[int, int]], layers: Seq[int]) -> Tensor:
    """Mean state of each range of rows at each layer, [layers, ranges, hidden]; stops at the highest layer."""
    wanted = [[StateCapture(layer, first, last) for first, last in ranges] for layer in layers]
    captures = [*dict.fromkeys(capture for of_layer in wanted for capture in of_layer)]
    schedule = LayerSchedule.of(
        model.config.num_layers, len(batch.token_ids), captures=captures, exits=[LayerExit(max(layers), 0)]
    )
    states = model.forward(replace(batch, schedule=schedule, sampled=batch.sampled[:0])).states
    means = {capture: _mean(states[capture]) for capture in captures}
    return torch.stack([torch.stack([means[capture] for capture in of_layer]) for of_layer in wanted])


def _mean(states: Tensor) -> Tensor:
    """The mean that a first pass computes (scheduler/pooling.py), bit for bit."""
    return torch.from_numpy(running_sums(None, states)[-1] / len(states)).float()
