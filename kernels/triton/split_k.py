"""Split-K: the sums over the inputs of a tile, cut into splits that are added up in order.

    serial     one program sums the splits one after the other
    parallel   a program for each split; the last one of a tile to finish reduces

The plan changes no bit of the result: in each of them a split is summed from zero, and the sums of the splits are
added to zero in their order.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .gemm_config import MAX_SPLITS, Device, TileConfig
from .optional_triton import tl, triton
from .semaphores import zeroed_semaphores

Plan: TypeAlias = Literal["serial", "parallel"]
# What the reduction costs: what a program needs for the sums over so many inputs. Measured on an H200, a launch at 64
# tokens took 6.6 us longer than at one where tiles had 16 splits, and 2.8 us where they had 4: 0.32 us a split, 1.3 us
# for the 4 that there are now at most. Meanwhile an SM reads its share of 4.4 TB/s, 42 KB: 330 inputs of 64 outputs.
REDUCTION_COST = 330
LOADS = tl.constexpr(MAX_SPLITS)


def split_k_plan(splits: int, size: int, tiles: int, num_sms: int) -> Plan:
    """The cheaper plan, in units of a split of `size` inputs summed by one SM, which programs take in turns.

    More tiles than SMs are never cut: that bounds the workspace and the semaphores.
    """
    serial = triton.cdiv(tiles, num_sms) * splits
    parallel = triton.cdiv(tiles * splits, num_sms) + REDUCTION_COST / size
    return "parallel" if parallel < serial and tiles <= num_sms else "serial"


@dataclass(frozen=True, slots=True)
class SplitK:
    """How the splits of a tile run.

    plan: see the module's docstring.
    programs: how many there are for each tile.
    workspace: [splits, sums, tiles, block_m, block_t] float32, what waits for the reduction; parallel only.
    semaphores: one a tile, at zero; parallel only.
    """

    plan: Plan
    programs: int
    workspace: Tensor | None
    semaphores: Tensor | None

    @classmethod
    def plan_for(
        cls,
        splits: int,
        size: int,
        tiles: tuple[int, int],
        config: TileConfig,
        device: Device,
        on: torch.device,
        sums: int = 1,
    ) -> "SplitK":
        """Plans the splits of all tiles, see `split_k_plan`.

        size: inputs of a split.
        sums: those that a program makes of its split.
        """
        num_tiles = tiles[0] * tiles[1]
        plan = split_k_plan(splits, size, num_tiles, device.num_sms)
        if plan != "parallel":
            return cls(plan, 1, None, None)
        size = sums * splits * num_tiles * config.block_t * config.block_m
        workspace = torch.empty(size, dtype=torch.float32, device=on)
        return cls(plan, splits, workspace, zeroed_semaphores(num_tiles, on))


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
    """The sums of the splits from `index` on, `distance` tiles apart, added in their order.

    The loads do not wait for each other: a split that there is not loads zeros, which change no bit of the sum.
    """
    acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
    for first in range(0, splits, LOADS):
        for i in tl.static_range(LOADS):
            split = tl.full((1, 1), i, dtype=tl.int32) + first
            cell = workspace + (tl.cast(index, tl.int64) + split.to(tl.int64) * distance) * (
                BLOCK_M * BLOCK_T
            )
            cell += _cells(BLOCK_M, BLOCK_T)
            acc += tl.load(cell, mask=split < splits, other=0.0, cache_modifier=".cg")
    return acc
