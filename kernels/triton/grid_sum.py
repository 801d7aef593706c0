"""Sums over inputs with weights on a grid, see layout/grid_panels.py.

    acc = acc + scale_g * (codes_g x_g) + minimum_g * (ones x_g)        for each group g of 32 inputs

Codes are exact in bf16, and so are their products with x: nothing is rounded but sums, in float32, as on a CPU.
Rounding scale * code to bf16 before the matrix instruction would give what plain weights in bf16 have, for two and
a half instructions a weight; the scale of a group's sum costs a multiply-add for each token and 32 weights, half an
instruction a weight at 16 tokens and two at 64. The sum of x comes out of the matrix instructions as well, which
wait for memory anyway: by shuffles it would have to change places between threads at every step.
"""

from .dequant_tile import from_int8, from_nibbles, ones_beside
from .optional_triton import tl, triton
from .token_tile import x_step

# Inputs of a group. No other weights have groups as short, see checks.GROUP_UNIT.
GRID_GROUP = tl.constexpr(32)
PANEL = tl.constexpr(64)
# Bytes of a panel's codes of a step: those of four bits, and twice as many of eight.
STEP_BYTES = tl.constexpr(2048)


@triton.jit
def grid_rows(
    w: tl.tensor, numbers: tl.tensor, m: tl.tensor, N: tl.tensor, width: tl.tensor, FORMAT: tl.constexpr
) -> tl.tuple:
    """Where the codes and the numbers of outputs begin, [BLOCK_M, 1] and [BLOCK_M]. width: bytes of a panel's codes."""
    panel, lane = (m // PANEL).to(tl.int64), m % PANEL
    of_panel = 2 * tl.cdiv(N, 2 * GRID_GROUP) * (2 * PANEL if FORMAT == "Q4_1" else PANEL)
    return w + (panel * width + lane * GRID_GROUP)[:, None], numbers + panel * of_panel + lane


@triton.jit
def step_codes(
    w_rows: tl.tensor, in_m: tl.tensor, step: tl.tensor, FORMAT: tl.constexpr, DTYPE: tl.constexpr
) -> tl.tuple:
    """The codes of both groups of a step, [BLOCK_M, 32] each, in DTYPE."""
    n = step * (2 * STEP_BYTES if FORMAT == "Q8_0" else STEP_BYTES) + tl.arange(0, GRID_GROUP)
    first = tl.load(w_rows + n[None, :], mask=in_m[:, None], other=0, eviction_policy="evict_first")
    if FORMAT == "Q8_0":
        n += STEP_BYTES
        second = tl.load(w_rows + n[None, :], mask=in_m[:, None], other=0, eviction_policy="evict_first")
        return from_int8(first, DTYPE), from_int8(second, DTYPE)
    else:
        return from_nibbles(first, 8 if FORMAT == "Q4_0" else 0, DTYPE)


@triton.jit
def group_numbers(
    number_rows: tl.tensor, in_m: tl.tensor, group: tl.tensor, FORMAT: tl.constexpr
) -> tl.tuple:
    """Scale and minimum of a group, [BLOCK_M] float32; where there is no minimum the scale again."""
    if FORMAT == "Q4_1":
        rows = number_rows + group * (2 * PANEL)
        scale = tl.load(rows, mask=in_m, other=0.0).to(tl.float32)
        return scale, tl.load(rows + PANEL, mask=in_m, other=0.0).to(tl.float32)
    else:
        scale = tl.load(number_rows + group * PANEL, mask=in_m, other=0.0).to(tl.float32)
        return scale, scale


@triton.jit
def _add_group(
    acc: tl.tensor,
    codes: tl.tensor,
    x_tile: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    FORMAT: tl.constexpr,
) -> tl.tensor:
    x = tl.trans(x_tile)
    acc += tl.dot(codes, x, input_precision="ieee") * scale[:, None]
    if FORMAT == "Q4_1":
        acc += tl.dot(ones_beside(codes), x, input_precision="ieee") * minimum[:, None]
    return acc


@triton.jit
def grid_partial_sum(
    operand: tl.tuple, split: tl.tensor, steps: tl.tensor, FORMAT: tl.constexpr
) -> tl.tensor:
    """As gemm_tile.py's `partial_sum`, with weights on a grid and steps of two groups."""
    x_rows, in_t, w_rows, in_m, number_rows, N, _ = operand
    acc = tl.zeros((w_rows.shape[0], x_rows.shape[0]), dtype=tl.float32)
    all_steps = tl.cdiv(N, 2 * GRID_GROUP)
    first = split * steps
    last = tl.minimum(first + steps, all_steps)
    # Of a shorter operand than others of the launch a split may lie behind the end.
    group = 2 * tl.maximum(tl.minimum(first, all_steps - 1), 0)
    scale, minimum = group_numbers(number_rows, in_m, group, FORMAT)
    scale_2, minimum_2 = group_numbers(number_rows, in_m, group + 1, FORMAT)
    for step in range(first, last):
        x_tile = x_step(x_rows, in_t, N, 2 * step, GRID_GROUP)
        x_tile_2 = x_step(x_rows, in_t, N, 2 * step + 1, GRID_GROUP)
        codes, codes_2 = step_codes(w_rows, in_m, step, FORMAT, x_tile.dtype)
        # A step ahead: no product waits for its own numbers.
        group = 2 * tl.minimum(step + 1, all_steps - 1)
        next_scale, next_minimum = group_numbers(number_rows, in_m, group, FORMAT)
        next_scale_2, next_minimum_2 = group_numbers(number_rows, in_m, group + 1, FORMAT)
        acc = _add_group(acc, codes, x_tile, scale, minimum, FORMAT)
        acc = _add_group(acc, codes_2, x_tile_2, scale_2, minimum_2, FORMAT)
        scale, minimum = next_scale, next_minimum
        scale_2, minimum_2 = next_scale_2, next_minimum_2
    return acc
