"""Mean hidden states of the layers' inputs: what a cheap classifier looks at."""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from ..errors import ZweaveError
from ..kv_cache.running_sums import running_sums
from ..model.batch import Batch
from ..model.model import Model
from ..scheduler.block_manager import BlockManager
from ..scheduler.chunk import Chunk
from ..scheduler.sequence import Sequence


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
    taken = blocks.allocate(sum(needed))
    try:
        rest = iter(taken)
        for sequence, count in zip(sequences, needed, strict=True):
            sequence.slot = 0
            sequence.block_table = [next(rest) for _ in range(count)]
        chunks = [Chunk(sequence, 0, count) for sequence, count in zip(sequences, counts, strict=True)]
        batch = Batch.of(chunks, blocks.block_size, model.embedding.device)
        return _states(model, batch, counts, layers)
    finally:
        blocks.release(taken)


def _states(model: Model, batch: Batch, counts: Seq[int], layers: Seq[int]) -> Tensor:
    x = model.embedding[batch.tokens]
    residual = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    means: dict[int, Tensor] = {}
    computed = 0
    for layer in sorted(set(layers)):
        x = model.decoder(x, residual, batch.places, computed, layer)
        computed = layer
        state = residual + x.float()
        means[layer] = torch.stack([_mean(part) for part in state.split(list(counts))])
    return torch.stack([means[layer] for layer in layers])


def _mean(states: Tensor) -> Tensor:
    """As a first pass has it (pooling.py), bit for bit."""
    return torch.from_numpy(running_sums(None, states)[-1] / len(states)).float()
