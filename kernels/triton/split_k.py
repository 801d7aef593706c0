"""Split-K: the sums over the inputs of a tile, cut into splits that are added up in order.

    none       one split, summed by one program
    serial     one program sums the splits one after the other
    parallel   a program for each split; the last one of a tile to finish reduces

The plan changes no bit of the result: in each of them a split is summed from zero, and the sums of the splits are
added to zero in their order.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .gemm_config import Device, TileConfig
from .optional_triton import tl, triton
from .semaphores import zeroed_semaphores

Plan: TypeAlias = Literal["none", "serial", "parallel"]


@dataclass(frozen=True, slots=True)
class SplitK:
    """How the splits of a tile run.

    plan: see the module's docstring.
    programs: how many there are for each tile.
    workspace: [splits, tiles, block_m, block_t] float32, the sums that wait for the reduction; parallel only.
    semaphores: one a tile, at zero; parallel only.
    """

    plan: Plan
    programs: int
    workspace: Tensor | None
    semaphores: Tensor | None

    @classmethod
    def plan_for(
        cls, splits: int, tiles: tuple[int, int], config: TileConfig, device: Device, on: torch.device
    ) -> "SplitK":
        """Runs splits in parallel where the tiles alone would leave SMs idle."""
        num_tiles = tiles[0] * tiles[1]
        if splits == 1:
            return cls("none", 1, None, None)
        if num_tiles >= device.num_sms:
            return cls("serial", 1, None, None)
        size = splits * num_tiles * config.block_t * config.block_m
        workspace = torch.empty(size, dtype=torch.float32, device=on)
        return cls("parallel", splits, workspace, zeroed_semaphores(num_tiles, on))


@triton.jit
def _cells(BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr) -> tl.tensor:
    """Offsets of a tile's sums in the workspace."""
    return tl.arange(0, BLOCK_M)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]


@triton.jit
def store_partial(
    acc: tl.tensor, workspace: tl.tensor, index: tl.tensor, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr
) -> None:
    """Stores the sum of a split for the program that will reduce."""
    cell = workspace + tl.cast(index, tl.int64) * (BLOCK_M * BLOCK_T) + _cells(BLOCK_M, BLOCK_T)
    tl.store(cell, acc, cache_modifier=".cg")


@triton.jit
def arrive_is_last(semaphore: tl.tensor, programs: tl.tensor) -> tl.tensor:
    """Arrives at a tile's semaphore. True for the last of its programs, which sets the semaphore back to zero."""
    # All threads have stored before one of them arrives.
    tl.debug_barrier()
    last = tl.atomic_add(semaphore, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(semaphore, 0)
    return last


@triton.jit
def reduce_partials(
    workspace: tl.tensor,
    index: tl.tensor,
    distance: tl.tensor,
    splits: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> tl.tensor:
    """The sums of the splits from `index` on, `distance` tiles apart, added in their order."""
    acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
    for split in range(splits):
        at = tl.cast(index, tl.int64) + tl.cast(split, tl.int64) * distance
        cell = workspace + at * (BLOCK_M * BLOCK_T) + _cells(BLOCK_M, BLOCK_T)
        acc += tl.load(cell, cache_modifier=".cg")
    return acc
