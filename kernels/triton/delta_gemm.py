"""The delta linear in Triton, in one launch, and the factored one.

    h[t, k] = (sum over n of vt[k, n] x[t, n]) * table[slot[t], k]
    y[t, m] = sum over n of w[m, n] x[t, n] + (sum over k of u[m, k] h[t, k] if slot[t] != 0) + bias[m]
    y[t, m] = sum over k of u[m, k] h[t, k] + bias[m]    without w

    x [T, N]   w [M, N]   vt [K, N]   u [M, K]   table [S, K]   slot [T]   bias [M]   ->   y [T, M]

W x does not wait for h: who computes which, and who waits for whom, is told in delta_roles.py. The delta is more splits
of the sum of W x. A token in slot 0 gets the bits of the plain linear, whatever h holds. Up to three such products are
groups of one launch, as in gemm.py, whose bits two launches would give. Bytes: M N + K (N + M) weights once,
T (2 N + 2 K + M) activations; FLOPs: 2 T (M N + K (N + M)). References: `svf_delta_linear_ref`,
`grouped_delta_linear_ref`, `grouped_factored_linear_ref`. See docs/kernels/svf_delta_linear.md.
"""

from collections.abc import Sequence

from torch import Tensor

from .checks import Factor
from .delta_launch import launch_delta
from .delta_roles import finish_part, group_of_role, role_of_program, splits_of_program, wait_for_h
from .gemm_operand import Operand
from .gemm_tile import (
    adapted_tokens,
    any_of,
    either,
    finished,
    first_number,
    for_tokens,
    pick_operand,
    store_tile,
    sum_of_splits,
    tile_operand,
)
from .handover import publish
from .optional_triton import tl, triton
from .pdl import launch_dependents, prefetch_weights, wait_for_predecessor
from .split_k import reduce_partials, store_partial


@triton.jit(
    do_not_specialize=[
        "T", "S", "h_tiles", "y_tiles", "h_parts", "y_parts", "h_splits", "w_splits", "u_splits", "h_steps", "y_steps",
    ]
)  # fmt: skip
def _delta_gemm_kernel(
    # Operands of all groups, see gemm_tile.py: x and w, or None; x and vt, whose groups may be others; h and u.
    products: tl.tuple,
    firsts: tl.tuple,
    deltas: tl.tuple,
    # M of each group of products, K of each group of firsts.
    outputs: tl.tuple,
    ranks: tl.tuple,
    y: tl.tensor,
    h: tl.tensor,
    table: tl.tensor,
    slot: tl.tensor,
    bias: tl.tensor,
    workspace: tl.tensor,
    semaphores: tl.tensor,
    T: tl.tensor,
    S: tl.tensor,
    # See delta_roles.py; steps of BLOCK_N inputs in a split.
    h_tiles: tl.tensor,
    y_tiles: tl.tensor,
    h_parts: tl.tensor,
    y_parts: tl.tensor,
    h_splits: tl.tensor,
    w_splits: tl.tensor,
    u_splits: tl.tensor,
    h_steps: tl.tensor,
    y_steps: tl.tensor,
    stride_y: tl.tensor,
    stride_h: tl.tensor,
    stride_table: tl.tensor,
    # Of w; of vt and u.
    W_FORMAT: tl.constexpr,
    W_GROUP: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """A part of a tile of h or of y a program."""
    tiles_t = tl.cdiv(T, BLOCK_T)
    of_h, tile_t, tile_m, part, parts = role_of_program(tiles_t, h_tiles, y_tiles, h_parts, y_parts)
    w_first, w_last, first, last = splits_of_program(of_h, part, parts, h_splits, w_splits, u_splits)
    steps = tl.where(of_h, h_steps, y_steps)
    group, tile, column, width = group_of_role(of_h, tile_m, ranks, outputs, BLOCK_M)
    t, m = tile_t * BLOCK_T + tl.arange(0, BLOCK_T), tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_t, in_m = t < T, m < width
    matrix = either(of_h, pick_operand(firsts, group), pick_operand(deltas, group))
    if products is None:
        sums_w: tl.constexpr = False
    else:
        product = tile_operand(pick_operand(products, group), t, in_t, m, in_m, W_FORMAT, W_GROUP)
        sums_w = w_first < w_last
    if PDL:
        launch_dependents()
        if sums_w:
            number = first_number(w_first, steps, W_FORMAT, W_GROUP, BLOCK_N)
            prefetch_weights(product, number, W_FORMAT, W_GROUP)
        else:
            factor = tile_operand(matrix, t, in_t, m, in_m, FORMAT, GROUP)
            prefetch_weights(factor, first_number(first, steps, FORMAT, GROUP, BLOCK_N), FORMAT, GROUP)
        wait_for_predecessor()
    adapted = in_t if products is None else adapted_tokens(slot, t, in_t)
    if of_h & (any_of(adapted) == 0):
        return

    acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
    if products is not None:
        acc = sum_of_splits(acc, product, w_first, w_last, steps, W_FORMAT, W_GROUP, BLOCK_N)
    reads_h = (of_h == 0) & (first < last)
    wait_for_h(semaphores + tile_t, adapted, reads_h, h_tiles, y_tiles, y_parts, u_splits)
    # Not before: where a factor lies would take registers from the sum of W.
    factor = tile_operand(matrix, t, in_t, m, in_m, FORMAT, GROUP)
    # Masked, not multiplied by zero: what stands in h for a token of the base is not defined.
    factor = for_tokens(factor, tl.where(of_h, in_t, adapted))
    acc = sum_of_splits(acc, factor, first, last, steps, FORMAT, GROUP, BLOCK_N)
    if parts > 1:
        store_partial(acc, workspace, tl.program_id(0), BLOCK_M, BLOCK_T)
        if not finish_part(semaphores, of_h, tile_t, tile_m, tiles_t, h_tiles, parts):
            return
        tiles = tiles_t * tl.where(of_h, h_tiles, y_tiles)
        acc = reduce_partials(workspace, tl.program_id(0) - part * tiles, tiles, parts, BLOCK_M, BLOCK_T)

    if of_h:
        acc = finished(acc, table, slot, None, t, in_t, column + m, in_m, S, stride_table)
        store_tile(acc, h, t, in_t, column + m, in_m, stride_h)
        publish(semaphores + tile_t)
    else:
        acc = finished(acc, None, slot, bias, t, in_t, column + m, in_m, S, stride_table)
        store_tile(acc, y, t, in_t, column + m, in_m, stride_y)


def launch_delta_gemm(
    y: Tensor,
    products: Sequence[Operand],
    firsts: Sequence[Operand],
    u: Sequence[Factor],
    *,
    table: Tensor,
    slot: Tensor,
    bias: Tensor | None = None,
) -> None:
    """Launches one to three groups, which write consecutive columns of y; once where the factors are of one format.

    products: weights of each group, plain or on a grid of one format; none for the factored linear.
    firsts: of factors Vt, of one format, which give consecutive columns of h.
    u: of each group, of one format.
    """
    launch_delta(
        _delta_gemm_kernel,
        y,
        products,
        firsts,
        u,
        table=table,
        slot=slot,
        bias=bias,
        W_FORMAT=products[0].format if products else "plain",
        W_GROUP=products[0].group if products else 0,
    )
