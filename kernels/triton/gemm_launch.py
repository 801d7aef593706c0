"""Plans and launches a kernel of the GEMM: its tile, the splits of its sums, and how these run."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .gemm_config import device_of, paired_tile_config, split_size, tile_config
from .gemm_operand import Operand, all_aligned, kernel_operands, splits_of
from .pdl import launch_options
from .split_k import SplitK


def launch(
    kernel: Any,
    y: Tensor,
    products: Sequence[Operand],
    outputs: tuple[int, ...],
    *,
    table: Tensor | None,
    slot: Tensor | None,
    bias: Tensor | None,
    sums: int = 1,
    **constants: object,
) -> None:
    """Launches once, or not at all where y is empty.

    products: of each group, all of one format.
    outputs: of the grid; no tile lies in two of them.
    sums: those that a program makes side by side, 1 or 2.
    constants: the kernel's own.
    """
    if y.numel() == 0:
        return
    T, M = y.shape[0], sum(outputs)
    device, dtype = device_of(y.device.index), products[0].x.dtype
    aligned = all_aligned(products)
    if sums == 2:
        config = paired_tile_config(T, M, dtype, device, aligned)
    else:
        config = tile_config(T, M, dtype, products[0].scales, device, aligned)
    size = split_size(M, max(product.in_features for product in products), device)
    splits = max(1, splits_of(products, size))
    tiles = config.tiles(T, outputs)
    split_k = SplitK.plan_for(splits, size, tiles, config, device, y.device, sums)
    kernel[(*tiles, split_k.programs)](
        kernel_operands(products),
        outputs,
        y,
        table,
        slot,
        bias,
        split_k.workspace,
        split_k.semaphores,
        T,
        0 if table is None else table.shape[0],
        splits,
        size // config.block_n,
        y.stride(0),
        0 if table is None else table.stride(0),
        SPLIT_K=split_k.plan,
        BLOCK_T=config.block_t,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(y.device.index),
        **constants,
    )
