"""Two GEMMs in Triton whose results meet in the epilogue: the gated product of an MLP.

    y[t, m] = silu(y_0[t, m]) * y_1[t, m]        silu(a) = a / (1 + exp(-a))

y_0 [T, M] and y_1 [T, M] are what gemm.py makes of two groups of equal M, with the same scales and bias, and of the
same order of sums. A program sums both of a tile, in two accumulators, so that neither is ever stored.
Reference: `grouped_linear_ref`. See docs/kernels/grouped_linear.md.
"""

from collections.abc import Sequence

from torch import Tensor

from .dequant_tile import weight_tile
from .gemm_launch import launch
from .gemm_operand import Operand
from .gemm_tile import (
    finished,
    first_number,
    pick_operand,
    store_tile,
    tile_operand,
)
from .optional_triton import tl, triton
from .pdl import launch_dependents, prefetch_weights, wait_for_predecessor
from .split_k import arrive_is_last, reduce_partials, store_partial
from .token_tile import x_step


@triton.jit
def _add_step(
    acc: tl.tensor, x_tile: tl.tensor, operand: tl.tuple, step: tl.tensor, BLOCK_N: tl.constexpr
) -> tl.tensor:
    w_rows, in_m, width = operand[2], operand[3], operand[6]
    w_tile = weight_tile(w_rows, in_m, step, width, "plain", BLOCK_N, x_tile.dtype)
    return tl.dot(w_tile, tl.trans(x_tile), acc, input_precision="ieee")


@triton.jit
def _partial_sums(
    gate: tl.tuple,
    up: tl.tuple,
    split: tl.tensor,
    steps: tl.tensor,
    SHARED: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """Both sums over the inputs of a split, as gemm_tile.py's `partial_sum` makes each.

    SHARED: both groups have the same x.
    """
    gate_acc = tl.zeros((gate[2].shape[0], gate[0].shape[0]), dtype=tl.float32)
    up_acc = tl.zeros((gate[2].shape[0], gate[0].shape[0]), dtype=tl.float32)
    first = split * steps
    last = tl.minimum(first + steps, tl.cdiv(tl.maximum(gate[5], up[5]), BLOCK_N))
    for step in range(first, last):
        gate_x = x_step(gate[0], gate[1], gate[5], step, BLOCK_N)
        up_x = gate_x
        if not SHARED:
            up_x = x_step(up[0], up[1], up[5], step, BLOCK_N)
        gate_acc = _add_step(gate_acc, gate_x, gate, step, BLOCK_N)
        up_acc = _add_step(up_acc, up_x, up, step, BLOCK_N)
    return gate_acc, up_acc


@triton.jit
def sums_of_splits(
    gate_acc: tl.tensor,
    up_acc: tl.tensor,
    gate: tl.tuple,
    up: tl.tuple,
    first: tl.tensor,
    last: tl.tensor,
    steps: tl.tensor,
    SHARED: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """Both accumulators plus the sums of the splits from `first` to before `last`, in their order."""
    for split in range(first, last):
        gate_part, up_part = _partial_sums(gate, up, split, steps, SHARED, BLOCK_N)
        gate_acc += gate_part
        up_acc += up_part
    return gate_acc, up_acc


@triton.jit(do_not_specialize=["T", "S", "steps"])
def _silu_gemm_kernel(
    # Operands of both groups, see gemm_tile.py. outputs: M, once.
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
    SHARED: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """A tile of tokens and outputs a program, or with SPLIT_K "parallel" a split of one."""
    M = outputs[0]
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_t, in_m = t < T, m < M
    split = tl.program_id(2)
    gate = tile_operand(pick_operand(products, 0), t, in_t, m, in_m, "plain", 0)
    up = tile_operand(pick_operand(products, 1), t, in_t, m, in_m, "plain", 0)
    if PDL:
        launch_dependents()
        first = first_number(split, steps, "plain", 0, BLOCK_N)
        prefetch_weights(gate, first, "plain", 0)
        prefetch_weights(up, first, "plain", 0)
        wait_for_predecessor()

    if SPLIT_K == "serial":
        gate_acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
        up_acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
        gate_acc, up_acc = sums_of_splits(gate_acc, up_acc, gate, up, 0, splits, steps, SHARED, BLOCK_N)
    else:
        gate_acc, up_acc = _partial_sums(gate, up, split, steps, SHARED, BLOCK_N)
    if SPLIT_K == "parallel":
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tiles = tl.num_programs(0) * tl.num_programs(1)
        index = 2 * split * tiles + tile
        store_partial(gate_acc, workspace, index, BLOCK_M, BLOCK_T)
        store_partial(up_acc, workspace, index + tiles, BLOCK_M, BLOCK_T)
        if not arrive_is_last(semaphores + tile, tl.num_programs(2)):
            return
        gate_acc = reduce_partials(workspace, tile, 2 * tiles, tl.num_programs(2), BLOCK_M, BLOCK_T)
        up_acc = reduce_partials(workspace, tiles + tile, 2 * tiles, tl.num_programs(2), BLOCK_M, BLOCK_T)

    gate_value = finished(gate_acc, table, slot, bias, t, in_t, m, in_m, S, stride_table)
    up_value = finished(up_acc, table, slot, bias, t, in_t, M + m, in_m, S, stride_table)
    store_tile(gate_value / (1.0 + tl.exp(-gate_value)) * up_value, y, t, in_t, m, in_m, stride_y)


def launch_silu_gemm(
    y: Tensor,
    products: Sequence[Operand],
    *,
    table: Tensor | None = None,
    slot: Tensor | None = None,
    bias: Tensor | None = None,
    shared: bool = False,
) -> None:
    """Launches two groups of plain weights and equal M; arguments as in gemm.py's `launch_gemm`.

    shared: the products have the same x.
    """
    outputs = (products[0].out_features,)
    launch(
        _silu_gemm_kernel,
        y,
        products,
        outputs,
        table=table,
        slot=slot,
        bias=bias,
        sums=2,
        SHARED=shared,
    )
