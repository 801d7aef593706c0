"""Plans and launches a kernel of the delta or the factored linear: how the tiles of h and of y are cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import Factor
from .gemm import launch_gemm
from .gemm_config import Device, Scales, device_of, paired_tile_config, split_size, tile_config
from .gemm_operand import Operand, all_aligned, kernel_operands, splits_of
from .pdl import launch_options
from .semaphores import zeroed_semaphores
from .split_k import split_k_plan


@dataclass(frozen=True, slots=True)
class Cut:
    """How the sums of tiles are cut.

    tiles: along the tokens, and of outputs for each of them.
    size: inputs of a split.
    splits, parts: of a tile; as many parts as splits, or one.
    """

    tiles: tuple[int, int]
    size: int
    splits: int
    parts: int

    @classmethod
    def of(cls, tiles: tuple[int, int], size: int, splits: int, device: Device) -> "Cut":
        parallel = split_k_plan(splits, size, tiles[0] * tiles[1], device.num_sms) == "parallel"
        return cls(tiles, size, splits, splits if parallel else 1)

    @property
    def programs(self) -> int:
        return self.tiles[0] * self.tiles[1] * self.parts


def launch_delta(
    kernel: Any,
    y: Tensor,
    products: Sequence[Operand],
    firsts: Sequence[Operand],
    u: Sequence[Factor],
    *,
    table: Tensor,
    slot: Tensor,
    bias: Tensor | None,
    sums: int = 1,
    **constants: object,
) -> None:
    """Launches h and y as one, or not at all where y is empty; h before y where its factors are of another format.

    Arguments as in delta_gemm.py's `launch_delta_gemm`.
    products: plain, or on a grid of one format; none for the factored linear.
    sums: those that a program makes side by side, 1 or 2: of groups whose tiles lie at the same place.
    constants: the kernel's own.
    """
    if y.numel() == 0:
        return
    x, ranks = firsts[0].x, tuple(first.out_features for first in firsts)
    h = x.new_empty(len(x), sum(ranks))
    deltas = [Operand.of(*pair) for pair in zip(h.split([k.shape[1] for k in u], 1), u, strict=True)]
    h_outputs: tuple[int, ...] = ranks
    if firsts[0].kind != deltas[0].kind:
        launch_gemm(h, firsts, table=table, slot=slot, skip_base=bool(products))
        firsts, h_outputs = deltas, tuple(0 for _ in deltas)
    outputs = tuple(delta.out_features for delta in deltas)
    device, aligned = device_of(y.device.index), all_aligned([*products, *firsts, *deltas])
    tiled: tuple[int, ...]
    h_tiled: tuple[int, ...]
    scales: Scales
    if sums == 2:
        # Tiles of both groups at once.
        tiled, h_tiled = outputs[:1], (max(h_outputs),)
        config = paired_tile_config(len(x), outputs[0], x.dtype, device, aligned)
    else:
        tiled, h_tiled = outputs, h_outputs
        known = {operand.scales for operand in (*products[:1], deltas[0])}
        scales = next((kind for kind in ("grid", "group") if kind in known), "none")
        config = tile_config(len(x), sum(outputs), x.dtype, scales, device, aligned)
    h_size = split_size(sum(ranks), x.shape[1], device)
    h_cut = Cut.of(config.tiles(len(x), h_tiled), h_size, max(1, splits_of(firsts, h_size)), device)
    # Splits of u are as long as those of w, so that no program waits for a longer one.
    size = split_size(sum(tiled), max(operand.in_features for operand in products or deltas), device)
    w_splits, u_splits = splits_of(products, size), splits_of(deltas, size)
    cut = Cut.of(config.tiles(len(x), tiled), size, max(1, w_splits + u_splits), device)
    programs = h_cut.programs + cut.programs
    # The programs that store parts, those of h first: none of a prompt's.
    cells = programs if cut.parts > 1 else h_cut.programs if h_cut.parts > 1 else 0
    kernel[(programs,)](
        kernel_operands(products) if products else None,
        kernel_operands(firsts),
        kernel_operands(deltas),
        outputs,
        h_outputs,
        y,
        h,
        table,
        slot,
        bias,
        torch.empty(cells * sums * config.block_m * config.block_t, dtype=torch.float32, device=y.device),
        zeroed_semaphores(cut.tiles[0] * (1 + h_cut.tiles[1] + cut.tiles[1]), y.device),
        len(x),
        len(table),
        h_cut.tiles[1],
        cut.tiles[1],
        h_cut.parts,
        cut.parts,
        h_cut.splits,
        w_splits,
        u_splits,
        h_cut.size // config.block_n,
        size // config.block_n,
        y.stride(0),
        h.stride(0),
        table.stride(0),
        FORMAT=deltas[0].format,
        GROUP=deltas[0].group,
        BLOCK_T=config.block_t,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(y.device.index),
        **constants,
    )
