"""The GEMM in Triton: a product, the scales of slots, and where there is a delta a second product.

    y[t, m] = (sum over n of w[m, n] x[t, n]) * table[slot[t], m] + bias[m]
    y[t, m] = sum over n of w[m, n] x[t, n] + (sum over k of u[m, k] h[t, k] if slot[t] != 0) + bias[m]

    x [T, N]   w [M, N]   h [T, K]   u [M, K]   table [S, M]   slot [T]   bias [M]   ->   y [T, M]

Table, delta and bias may each be absent. One launch of the first form is the plain linear, two are the factored one,
and the first followed by the second is the delta linear, whose delta is more splits of the same sum. A token in slot 0
gets the bits of the plain linear, whatever h holds. Up to three such products, of weights that lie anywhere, are groups
of one launch and write consecutive columns of y; no tile lies in two of them. Bytes: M (N + K) weights once,
T (N + K + M) activations; FLOPs: 2 T M (N + K). References: `linear_ref`, `svf_linear_ref`, `svf_delta_linear_ref`,
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
    either,
    finished,
    first_number,
    for_tokens,
    group_of,
    partial_sum,
    pick,
    pick_operand,
    serial_sum,
    store_tile,
    tile_operand,
)
from .optional_triton import tl, triton
from .pdl import launch_dependents, prefetch_weights, wait_for_predecessor
from .split_k import arrive_is_last, reduce_partials, store_partial


@triton.jit
def _program_sum(
    product: tl.tuple,
    delta: tl.tuple,
    split: tl.tensor,
    w_splits: tl.tensor,
    u_splits: tl.tensor,
    steps: tl.tensor,
    W_FORMAT: tl.constexpr,
    W_GROUP: tl.constexpr,
    U_FORMAT: tl.constexpr,
    U_GROUP: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """What a program sums: with SPLIT_K "serial" all splits of a product and of its delta, else one of them."""
    acc = tl.zeros((product[2].shape[0], product[0].shape[0]), dtype=tl.float32)
    if SPLIT_K == "serial":
        acc = serial_sum(acc, product, w_splits, steps, W_FORMAT, W_GROUP, BLOCK_N)
        if delta is not None:
            acc = serial_sum(acc, delta, u_splits, steps, U_FORMAT, U_GROUP, BLOCK_N)
    elif delta is None:  # noqa: SIM114  a kernel's `or` does not stop at a constant
        acc = partial_sum(product, split, steps, W_FORMAT, W_GROUP, BLOCK_N)
    elif split < w_splits:
        acc = partial_sum(product, split, steps, W_FORMAT, W_GROUP, BLOCK_N)
    else:
        acc = partial_sum(delta, split - w_splits, steps, U_FORMAT, U_GROUP, BLOCK_N)
    return acc


@triton.jit(do_not_specialize=["T", "S", "steps"])
def _gemm_kernel(
    # Operands of all groups, see gemm_tile.py; deltas may be None. outputs: M of each group.
    products: tl.tuple,
    deltas: tl.tuple,
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
    # Splits of w and of u; steps of BLOCK_N inputs in a split.
    w_splits: tl.tensor,
    u_splits: tl.tensor,
    steps: tl.tensor,
    stride_y: tl.tensor,
    stride_table: tl.tensor,
    W_FORMAT: tl.constexpr,
    W_GROUP: tl.constexpr,
    U_FORMAT: tl.constexpr,
    U_GROUP: tl.constexpr,
    SKIP_BASE: tl.constexpr,
    SPLIT_K: tl.constexpr,
    # Whether a program chooses between product and delta before its sum: one loop, whose buffers are there once.
    MERGED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """A tile of tokens and of a group's outputs a program, or with SPLIT_K "parallel" a split of one."""
    # Token tiles come first: the programs that share a weight tile run together, and it leaves memory once.
    group, tile_m, column = group_of(tl.program_id(1), outputs, BLOCK_M)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    in_t, in_m = t < T, m < pick(outputs, group)
    product, split = pick_operand(products, group), tl.program_id(2)
    if MERGED:
        of_delta = split >= w_splits
        product = either(of_delta, pick_operand(deltas, group), product)
        split = tl.where(of_delta, split - w_splits, split)
    product = tile_operand(product, t, in_t, m, in_m, W_GROUP)
    if PDL:
        launch_dependents()
        prefetch_weights(product, first_number(split, steps, W_FORMAT, BLOCK_N))
        wait_for_predecessor()
    if SKIP_BASE:
        all_base = any_of(adapted_tokens(slot, t, in_t)) == 0
        if all_base:
            return
    delta = None
    if MERGED:
        product = for_tokens(product, tl.where(of_delta, adapted_tokens(slot, t, in_t), in_t))
    elif deltas is not None:
        delta = tile_operand(pick_operand(deltas, group), t, in_t, m, in_m, U_GROUP)
        # Masked, not multiplied by zero: what stands in h for a token of the base is not defined.
        delta = for_tokens(delta, adapted_tokens(slot, t, in_t))

    acc = _program_sum(
        product, delta, split, w_splits, u_splits, steps,
        W_FORMAT, W_GROUP, U_FORMAT, U_GROUP, SPLIT_K, BLOCK_N,
    )  # fmt: skip
    if SPLIT_K == "parallel":
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tiles = tl.num_programs(0) * tl.num_programs(1)
        store_partial(acc, workspace, tl.program_id(2) * tiles + tile, BLOCK_M, BLOCK_T)
        if not arrive_is_last(semaphores + tile, tl.num_programs(2)):
            return
        acc = reduce_partials(workspace, tile, tiles, tl.num_programs(2), BLOCK_M, BLOCK_T)

    acc = finished(acc, table, slot, bias, t, in_t, column + m, in_m, S, stride_table)
    store_tile(acc, y, t, in_t, column + m, in_m, stride_y)


def gemm(
    x: Tensor,
    weight: Factor,
    *,
    delta: tuple[Tensor, Factor] | None = None,
    table: Tensor | None = None,
    slot: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    skip_base: bool = False,
) -> Tensor:
    """y = x @ weight.T, times the slots' rows of a table, plus a delta and a bias. Launches once, checks nothing.

    delta: h [T, K] and u [M, K]; tokens whose slot is not 0 get h @ u.T more.
    skip_base: tiles whose tokens are all in slot 0 are not computed and stay undefined.
    """
    y = x.new_empty(x.shape[0], weight.shape[0], dtype=out_dtype)
    deltas = [Operand.of(*delta)] if delta else []
    launch_gemm(y, [Operand.of(x, weight)], deltas, table=table, slot=slot, bias=bias, skip_base=skip_base)
    return y


def launch_gemm(
    y: Tensor,
    products: Sequence[Operand],
    deltas: Sequence[Operand] = (),
    *,
    table: Tensor | None = None,
    slot: Tensor | None = None,
    bias: Tensor | None = None,
    skip_base: bool = False,
) -> None:
    """Launches one to three groups, which write consecutive columns of y; other arguments as in `gemm`.

    products, deltas: of each group, all of one format; deltas is empty or as long as products.
    """
    first, second = products[0], deltas[0] if deltas else None
    launch(
        _gemm_kernel,
        y,
        products,
        deltas,
        tuple(product.out_features for product in products),
        table=table,
        slot=slot,
        bias=bias,
        W_FORMAT=first.format,
        W_GROUP=first.group,
        U_FORMAT=second.format if second else "plain",
        U_GROUP=second.group if second else 0,
        SKIP_BASE=skip_base,
    )
