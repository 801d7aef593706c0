"""The GEMM in Triton: a product, and the scales of slots.

    y[t, m] = (sum over n of w[m, n] x[t, n]) * table[slot[t], m] + bias[m]

    x [T, N]   w [M, N]   table [S, M]   slot [T]   bias [M]   ->   y [T, M]

Table and bias may each be absent. One launch is the plain linear, two are the factored one. Up to three such products,
of weights that lie anywhere, are groups of one launch and write consecutive columns of y; no tile lies in two of them.
Bytes: M N weights once, T (N + M) activations; FLOPs: 2 T M N. References: `linear_ref`, `svf_linear_ref`,
`grouped_linear_ref`. See docs/kernels/svf_linear.md.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import Factor
from .gemm_launch import launch
from .gemm_operand import Operand
from .gemm_tile import (
    adapted_tokens,
    any_of,
    finished,
    first_number,
    group_of,
    partial_sum,
    pick_operand,
    store_tile,
    sum_of_splits,
    tile_operand,
)
from .optional_triton import tl, triton
from .pdl import launch_dependents, prefetch_weights, wait_for_predecessor
from .split_k import arrive_is_last, reduce_partials, store_partial


@triton.jit(do_not_specialize=["T", "S", "steps"])
def _gemm_kernel(
    # Operands of all groups, see gemm_tile.py. outputs: M of each group.
    products: tl.tuple,
    outputs: tl.tuple,
    # The result, and what its epilogue reads.
    y: tl.tensor,
    table: tl.tensor,
    slot: tl.tensor,
    bias: tl.tensor,
    # Of SPLIT_K "parallel".
    workspace: tl.tensor,
    semaphores: tl.tensor,
    T: tl.tensor,
    S: tl.tensor,
    # Splits of a tile; steps of BLOCK_N inputs in a split.
    splits: tl.tensor,
    steps: tl.tensor,
    stride_y: tl.tensor,
    stride_table: tl.tensor,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    SKIP_BASE: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """A tile of tokens and of a group's outputs a program, or with SPLIT_K "parallel" a split of one."""
    # Token tiles come first: the programs that share a weight tile run together, and it leaves memory once.
    group, tile_m, column, width = group_of(tl.program_id(1), outputs, BLOCK_M)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    in_t, in_m = t < T, m < width
    split = tl.program_id(2)
    product = tile_operand(pick_operand(products, group), t, in_t, m, in_m, FORMAT, GROUP)
    if PDL:
        launch_dependents()
        prefetch_weights(product, first_number(split, steps, FORMAT, GROUP, BLOCK_N), FORMAT, GROUP)
        wait_for_predecessor()
    if SKIP_BASE:
        all_base = any_of(adapted_tokens(slot, t, in_t)) == 0
        if all_base:
            return

    if SPLIT_K == "serial":
        acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
        acc = sum_of_splits(acc, product, 0, splits, steps, FORMAT, GROUP, BLOCK_N)
    else:
        acc = partial_sum(product, split, steps, FORMAT, GROUP, BLOCK_N)
    if SPLIT_K == "parallel":
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tiles = tl.num_programs(0) * tl.num_programs(1)
        store_partial(acc, workspace, split * tiles + tile, BLOCK_M, BLOCK_T)
        if not arrive_is_last(semaphores + tile, tl.num_programs(2)):
            return
        acc = reduce_partials(workspace, tile, tiles, tl.num_programs(2), BLOCK_M, BLOCK_T)

    acc = finished(acc, table, slot, bias, t, in_t, column + m, in_m, S, stride_table)
    store_tile(acc, y, t, in_t, column + m, in_m, stride_y)


def gemm(
    x: Tensor,
    weight: Factor,
    *,
    table: Tensor | None = None,
    slot: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    skip_base: bool = False,
) -> Tensor:
    """y = x @ weight.T, times the slots' rows of a table, plus a bias. Launches once, checks nothing.

    skip_base: tiles whose tokens are all in slot 0 are not computed and stay undefined.
    """
    y = x.new_empty(x.shape[0], weight.shape[0], dtype=out_dtype)
    launch_gemm(y, [Operand.of(x, weight)], table=table, slot=slot, bias=bias, skip_base=skip_base)
    return y


def launch_gemm(
    y: Tensor,
    products: Sequence[Operand],
    *,
    table: Tensor | None = None,
    slot: Tensor | None = None,
    bias: Tensor | None = None,
    skip_base: bool = False,
) -> None:
    """Launches one to three groups, which write consecutive columns of y; other arguments as in `gemm`.

    products: of each group, all of one format.
    """
    launch(
        _gemm_kernel,
        y,
        products,
        tuple(product.out_features for product in products),
        table=table,
        slot=slot,
        bias=bias,
        FORMAT=products[0].format,
        GROUP=products[0].group,
        SKIP_BASE=skip_base,
    )
