"""Two delta linears in Triton, or factored ones, whose results meet in the epilogue: the gated product of an MLP.

    y[t, m] = silu(y_0[t, m]) * y_1[t, m]        silu(a) = a / (1 + exp(-a))

y_0 [T, M] and y_1 [T, M] are what delta_gemm.py makes of two groups of equal M and plain weights, of the same order of
sums. A program sums both of a tile, of h as of y, in two accumulators. One launch. References:
`grouped_delta_linear_ref`, `grouped_factored_linear_ref`. See docs/kernels/grouped_linear.md.
"""

from collections.abc import Sequence

from torch import Tensor

from .checks import Factor
from .delta_launch import launch_delta
from .delta_roles import finish_part, role_of_program, splits_of_program, wait_for_h
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
    tile_operand,
)
from .handover import publish
from .optional_triton import tl, triton
from .pdl import launch_dependents, prefetch_weights, wait_for_predecessor
from .silu_gemm import sums_of_splits
from .split_k import reduce_partials, store_partial


@triton.jit(
    do_not_specialize=[
        "T", "S", "h_tiles", "y_tiles", "h_parts", "y_parts", "h_splits", "w_splits", "u_splits", "h_steps", "y_steps",
    ]
)  # fmt: skip
def _silu_delta_gemm_kernel(
    # As in delta_gemm.py, of two groups each.
    products: tl.tuple,
    firsts: tl.tuple,
    deltas: tl.tuple,
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
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """A part of a tile of both h or of y a program."""
    tiles_t, M = tl.cdiv(T, BLOCK_T), outputs[0]
    of_h, tile_t, tile, part, parts = role_of_program(tiles_t, h_tiles, y_tiles, h_parts, y_parts)
    w_first, w_last, first, last = splits_of_program(of_h, part, parts, h_splits, w_splits, u_splits)
    steps = tl.where(of_h, h_steps, y_steps)
    t, m = tile_t * BLOCK_T + tl.arange(0, BLOCK_T), tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_t, in_gate, in_up = t < T, m < tl.where(of_h, ranks[0], M), m < tl.where(of_h, ranks[1], M)
    gate_matrix = either(of_h, pick_operand(firsts, 0), pick_operand(deltas, 0))
    up_matrix = either(of_h, pick_operand(firsts, 1), pick_operand(deltas, 1))
    if products is None:
        sums_w: tl.constexpr = False
    else:
        gate = tile_operand(pick_operand(products, 0), t, in_t, m, in_gate, "plain", 0)
        up = tile_operand(pick_operand(products, 1), t, in_t, m, in_up, "plain", 0)
        sums_w = w_first < w_last
    if PDL:
        launch_dependents()
        if sums_w:
            prefetch_weights(gate, first_number(w_first, steps, "plain", 0, BLOCK_N), "plain", 0)
            prefetch_weights(up, first_number(w_first, steps, "plain", 0, BLOCK_N), "plain", 0)
        else:
            number = first_number(first, steps, "plain", 0, BLOCK_N)
            prefetch_weights(tile_operand(gate_matrix, t, in_t, m, in_gate, "plain", 0), number, "plain", 0)
            prefetch_weights(tile_operand(up_matrix, t, in_t, m, in_up, "plain", 0), number, "plain", 0)
        wait_for_predecessor()
    adapted = in_t if products is None else adapted_tokens(slot, t, in_t)
    if of_h & (any_of(adapted) == 0):
        return

    gate_acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
    up_acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
    if products is not None:
        gate_acc, up_acc = sums_of_splits(gate_acc, up_acc, gate, up, w_first, w_last, steps, True, BLOCK_N)
    reads_h = (of_h == 0) & (first < last)
    wait_for_h(semaphores + tile_t, adapted, reads_h, h_tiles, y_tiles, y_parts, u_splits)
    seen = tl.where(of_h, in_t, adapted)
    gate = for_tokens(tile_operand(gate_matrix, t, in_t, m, in_gate, "plain", 0), seen)
    up = for_tokens(tile_operand(up_matrix, t, in_t, m, in_up, "plain", 0), seen)
    gate_acc, up_acc = sums_of_splits(gate_acc, up_acc, gate, up, first, last, steps, False, BLOCK_N)
    if parts > 1:
        program = 2 * tl.program_id(0)
        store_partial(gate_acc, workspace, program, BLOCK_M, BLOCK_T)
        store_partial(up_acc, workspace, program + 1, BLOCK_M, BLOCK_T)
        if not finish_part(semaphores, of_h, tile_t, tile, tiles_t, h_tiles, parts):
            return
        tiles = 2 * tiles_t * tl.where(of_h, h_tiles, y_tiles)
        program -= part * tiles
        gate_acc = reduce_partials(workspace, program, tiles, parts, BLOCK_M, BLOCK_T)
        up_acc = reduce_partials(workspace, program + 1, tiles, parts, BLOCK_M, BLOCK_T)

    if of_h:
        K = ranks[0]
        gate_acc = finished(gate_acc, table, slot, None, t, in_t, m, in_gate, S, stride_table)
        up_acc = finished(up_acc, table, slot, None, t, in_t, K + m, in_up, S, stride_table)
        store_tile(gate_acc, h, t, in_t, m, in_gate, stride_h)
        store_tile(up_acc, h, t, in_t, K + m, in_up, stride_h)
        publish(semaphores + tile_t)
    else:
        gate_acc = finished(gate_acc, None, slot, bias, t, in_t, m, in_gate, S, stride_table)
        up_acc = finished(up_acc, None, slot, bias, t, in_t, M + m, in_up, S, stride_table)
        store_tile(gate_acc / (1.0 + tl.exp(-gate_acc)) * up_acc, y, t, in_t, m, in_gate, stride_y)


def launch_silu_delta_gemm(
    y: Tensor,
    products: Sequence[Operand],
    firsts: Sequence[Operand],
    u: Sequence[Factor],
    *,
    table: Tensor,
    slot: Tensor,
    bias: Tensor | None = None,
) -> None:
    """Launches two groups of plain weights and equal M, which share x; arguments as in `launch_delta_gemm`."""
    launch_delta(_silu_delta_gemm_kernel, y, products, firsts, u, table=table, slot=slot, bias=bias, sums=2)
