"""How the Triton GEMM is cut into tiles, steps and splits.

A product y = x w.T of T tokens, M outputs and N inputs is a grid of tiles. The inputs of a tile, the K of split-K, are
cut into splits that are summed one by one and then added up in order. Whether the splits of a tile run in parallel, as
programs of their own that fill a large chip when tokens are few, or serially in one program, does not change a bit of
the result.

Batch invariance rests on one rule: what decides the order of a sum (the size of a split, the step within it, the
kind of matrix instruction) follows from the matrix, its format and the device, and never from T.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

import torch

from .optional_triton import triton

# Where the scales of the weights are applied: there are none, once to the result, to each step, or twice a step.
Scales: TypeAlias = Literal["none", "row", "group", "grid"]
SPLIT_UNIT = 128
MIN_SPLIT_SIZE = 256
# One program adds them all up, and what a split saves shrinks with their number.
MAX_SPLITS = 4
_max_splits = MAX_SPLITS


def use_max_splits(most: int) -> None:
    """At most so many splits of a product from now on. For measurements: another number changes bits of results."""
    global _max_splits
    _max_splits = most


@dataclass(frozen=True, slots=True)
class Device:
    """What the heuristics want to know of a GPU.

    capability: (9, 0) for Hopper.
    num_sms: its streaming multiprocessors.
    """

    capability: tuple[int, int]
    num_sms: int

    @property
    def ample_shared_memory(self) -> bool:
        """Consumer chips have 99 KiB of shared memory where the data centre's have 163 and more."""
        return self.capability in ((8, 0), (9, 0), (10, 0), (10, 3))


@cache
def device_of(index: int | None) -> Device:
    """The CUDA device of an index; for None (the interpreter) a Hopper."""
    if index is None:
        return Device((9, 0), 132)
    properties = torch.cuda.get_device_properties(index)
    return Device((properties.major, properties.minor), properties.multi_processor_count)


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Shape and resources of a tile.

    block_t: tokens.
    block_m: outputs.
    block_n: inputs of a step.
    num_warps: warps of a program.
    num_stages: steps in flight.
    """

    block_t: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    def tiles(self, tokens: int, outputs: tuple[int, ...]) -> tuple[int, int]:
        """Tiles along the tokens and along the outputs of all groups; none lies in two groups."""
        return triton.cdiv(tokens, self.block_t), sum(triton.cdiv(m, self.block_m) for m in outputs)


def step_config(dtype: torch.dtype, scales: Scales, aligned: bool) -> int:
    """Inputs that a tile takes in at a step: of weights of a byte twice as many, for the same bytes in flight.

    Steps of one accumulator follow each other like the instructions of a step: only where groups have scales does
    the length of a step show in the result. Rows out of line are loaded value by value, through registers. A step of a
    grid is what lies together, two groups.
    """
    if scales == "grid":
        return 64
    if dtype == torch.float32 or not aligned:
        return 32
    return 128 if scales == "row" else 64


def split_size(out_features: int, in_features: int, device: Device) -> int:
    """Inputs of a split, a multiple of 128: at few tokens the splits give each SM two programs, if they can."""
    tiles = triton.cdiv(out_features, 64)
    splits = min(2 * device.num_sms // tiles, in_features // MIN_SPLIT_SIZE, _max_splits)
    units = triton.cdiv(in_features, SPLIT_UNIT)
    return SPLIT_UNIT * max(1, triton.cdiv(units, max(1, splits)))


def tile_config(
    tokens: int, out_features: int, dtype: torch.dtype, scales: Scales, device: Device, aligned: bool
) -> TileConfig:
    """Picks the tile of a GEMM. aligned: rows of x and w begin at multiples of 16 bytes."""
    block_n = step_config(dtype, scales, aligned)
    block_t = min(max(16, triton.next_power_of_2(tokens)), 128)
    if dtype == torch.float32:
        block_t = min(block_t, 32)
        # Steps of a grid are twice as long, and spill with four warps where rows are out of line.
        num_warps = 8 if scales == "grid" else block_t // 4
        return TileConfig(block_t, 64, block_n, num_warps, num_stages=2)
    if not aligned:
        # Beside a grid 32 tokens spill on sm_80.
        most = 16 if scales == "grid" else 32
        return TileConfig(min(block_t, most), 64, block_n, num_warps=4, num_stages=2)
    # Large tiles read less, and are worth it once there are enough of them to occupy half of a large chip.
    tiles = triton.cdiv(tokens, 128) * triton.cdiv(out_features, 128)
    if tokens <= 64 or tiles < 64:
        # Steps of groups are half as long or less: more of them keep as many bytes in flight.
        return TileConfig(
            min(block_t, 64), 64, block_n, num_warps=4, num_stages=6 if scales in ("group", "grid") else 4
        )
    stages = 4 if device.ample_shared_memory else 3
    # Groups need the sum of a step beside the running sums; on consumer chips steps of 128 inputs leave no registers.
    narrow = scales in ("group", "grid") or (scales == "row" and not device.ample_shared_memory)
    return TileConfig(64 if narrow else 128, 128, block_n, num_warps=8, num_stages=stages)


def paired_tile_config(
    tokens: int, out_features: int, dtype: torch.dtype, device: Device, aligned: bool
) -> TileConfig:
    """Picks the tile of two GEMMs of plain weights that one program sums: small, with half the steps in flight."""
    config = tile_config(tokens, out_features, dtype, "none", device, aligned)
    # Four accumulators, two of them of a split. In float32 they spill with four warps where rows are out of line.
    if dtype == torch.float32 or not aligned:
        return replace(config, block_t=16, num_warps=8 if dtype == torch.float32 else 4)
    # mma.sync spills at 64 tokens, wgmma and tcgen05 with four warps.
    block_t = min(config.block_t, 64 if device.capability[0] in (9, 10) else 32)
    return TileConfig(block_t, 64, config.block_n, num_warps=8 if block_t == 64 else 4, num_stages=3)
