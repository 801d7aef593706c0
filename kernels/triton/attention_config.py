"""Tiles of the attention kernels: chosen by the shapes of the model and the chip, never by batch or lengths.

A row's bits follow from block_j and the order of its tiles, so both are the same whatever is computed beside it.
"""

from dataclasses import dataclass

import torch

from .gemm_config import Device
from .optional_triton import triton

LOG2_E = 1.4426950408889634
LARGEST_HEAD = 256
# Positions are int32: a longer window is all of them.
LONGEST_WINDOW = 2**30


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Shape and resources of a tile.

    block_m: rows, queries times heads.
    block_d: head size, padded to a power of two.
    block_j: positions of a step.
    num_warps: warps of a program.
    num_stages: steps in flight.
    """

    block_m: int
    block_d: int
    block_j: int
    num_warps: int
    num_stages: int


def decode_config(group: int, head_size: int, dtype: torch.dtype) -> AttentionConfig:
    """Picks the tile of one query's heads. group: query heads to a key-value head."""
    block_d = _padded(head_size)
    if dtype == torch.float32:
        return AttentionConfig(16, block_d, 32 if block_d <= 128 else 16, num_warps=4, num_stages=3)
    # The entries of the block table go two stages ahead of what they point to: two tiles are in flight.
    block_m = 16 if group <= 16 else 32
    return AttentionConfig(block_m, block_d, 64 if block_d <= 128 else 32, num_warps=4, num_stages=5)


def prefill_config(head_size: int, dtype: torch.dtype, device: Device) -> AttentionConfig:
    """Picks the tile of many queries."""
    block_d = _padded(head_size)
    if dtype == torch.float32:
        block_m = 32 if block_d <= 128 else 16
        return AttentionConfig(block_m, block_d, 16, num_warps=block_m // 4, num_stages=3)
    if block_d > 128:
        return AttentionConfig(64, block_d, 32, num_warps=8, num_stages=3)
    # Where products go through the registers of a warp, 64 positions of 128 numbers take more than there are.
    by_warp = device.capability[0] in (8, 12)
    block_j = 32 if block_d == 128 and by_warp else 64
    return AttentionConfig(128, block_d, block_j, num_warps=8, num_stages=3)


def _padded(head_size: int) -> int:
    return max(16, triton.next_power_of_2(head_size))
