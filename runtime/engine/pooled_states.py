"""Mean hidden states of prompts at the layers' inputs, the features of a cheap classifier."""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from ..errors import ZweaveError
from ..kv_cache.running_sums import mean_state, running_sums
from ..model.layer_schedule import StateCapture
from ..scheduler.block_manager import BlockManager
from ..scheduler.chunk import Chunk
from ..scheduler.sequence import Sequence
from .step import Runner
from .step_arrays import row_ranges


def check_layers(layers: Seq[int], count: int) -> None:
    """Raises ZweaveError unless a model of `count` layers has states that enter these layers."""
    if not layers or not all(1 <= layer <= count for layer in layers):
        raise ZweaveError(f"layers are from 1 to {count}, one or more")


def pooled_states(
    runner: Runner, blocks: BlockManager, sequences: Seq[Sequence], layers: Seq[int], max_tokens: int
) -> Tensor:
    """Mean over each sequence's tokens of the base model's hidden states that enter each layer.

    layers: from 1 (the output of the first layer) to the model's number of layers, in any order; nothing above the
        highest is computed
    max_tokens: of a batch; a sequence with more gets a batch of its own
    Returns [layers, sequences, hidden] float32. Raises ZweaveError when other requests have taken the cache.
    """
    parts = [
        _pooled(runner, blocks, batch, layers) for batch in _batches(runner, blocks, sequences, max_tokens)
    ]
    if not parts:
        raise ZweaveError("there is no prompt: give at least one")
    return torch.cat(parts, dim=1)


def _batches(
    runner: Runner, blocks: BlockManager, sequences: Iterable[Sequence], max_tokens: int
) -> Iterator[list[Sequence]]:
    """Groups consecutive sequences that fit a batch and the cache together; a group has at least one."""
    batch: list[Sequence] = []
    num_tokens = num_blocks = 0
    for sequence in sequences:
        more_tokens = len(sequence.token_ids)
        more_blocks = runner.cache.blocks_for(more_tokens)
        if batch and (
            num_tokens + more_tokens > max_tokens or num_blocks + more_blocks > blocks.num_available
        ):
            yield batch
            batch, num_tokens, num_blocks = [], 0, 0
        batch.append(sequence)
        num_tokens, num_blocks = num_tokens + more_tokens, num_blocks + more_blocks
    if batch:
        yield batch


@torch.inference_mode()
def _pooled(runner: Runner, blocks: BlockManager, sequences: Seq[Sequence], layers: Seq[int]) -> Tensor:
    """The means of one batch, computed in blocks that are given back at once."""
    needed = [runner.cache.blocks_for(len(sequence.token_ids)) for sequence in sequences]
    if sum(needed) > blocks.num_available:
        raise ZweaveError("the cache is taken by other requests: let them finish or give more kv_tokens")
    taken = blocks.take_blocks(sum(needed))
    try:
        rest = iter(taken)
        for sequence, count in zip(sequences, needed, strict=True):
            sequence.slot = 0
            sequence.kv.block_table = [next(rest) for _ in range(count)]
        return _means(runner, [Chunk(sequence, 0, len(sequence.token_ids)) for sequence in sequences], layers)
    finally:
        blocks.return_blocks(taken)


def _means(runner: Runner, chunks: Seq[Chunk], layers: Seq[int]) -> Tensor:
    """Mean state of each chunk at each layer, [layers, chunks, hidden]."""
    states, ranges = runner.states(chunks, layers), row_ranges(chunks)
    means = {capture: _mean(states[capture]) for capture in states}
    return torch.stack(
        [torch.stack([means[StateCapture(layer, first, last)] for first, last in ranges]) for layer in layers]
    )


def _mean(states: Tensor) -> Tensor:
    """The mean that a first pass computes (scheduler/pooling.py), bit for bit."""
    return mean_state(running_sums(None, states)[-1], len(states))
