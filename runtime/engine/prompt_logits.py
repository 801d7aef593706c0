"""Logits of every token of a prompt, for what compares whole distributions."""

import torch
from torch import Tensor

from ..errors import ZweaveError
from ..experts.bank import Bank
from ..scheduler.block_manager import BlockManager
from ..scheduler.chunk import Chunk
from ..scheduler.sequence import Sequence
from .step import Runner


@torch.inference_mode()
def prompt_logits(runner: Runner, blocks: BlockManager, bank: Bank, sequence: Sequence) -> Tensor:
    """Logits [tokens, vocabulary], float32, of a sequence's tokens under its mixture, as one batch.

    Raises ZweaveError when other requests have taken the cache.
    """
    count = len(sequence.token_ids)
    needed = runner.cache.blocks_for(count)
    if needed > blocks.num_available:
        raise ZweaveError("the cache is taken by other requests: let them finish or give more kv_tokens")
    slot = bank.acquire(sequence.mixture)
    taken = blocks.take_blocks(needed)
    try:
        sequence.slot, sequence.kv.block_table = slot, taken
        (states,) = runner.states([Chunk(sequence, 0, count)], [runner.model.config.num_layers]).values()
        return runner.model.logits_of(states)
    finally:
        blocks.return_blocks(taken)
        bank.release(slot)
