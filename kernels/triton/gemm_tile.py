"""What the Triton GEMM is made of: operands, summing the inputs, scaling, and storing a tile.

    y[t, m] = sum over n of w[m, n] x[t, n]

The weights are the left operand of the matrix instructions, [BLOCK_M, BLOCK_N], the tokens the right one: the
instructions of sm_90 and sm_100 want 64 or 128 rows on the left and are content with 16 columns on the right.
Quantised weights stay small until they are in registers, where they become x's dtype, exactly; their scales are
applied in float32, one a row to the sum of a split, one a group to the sum of a step.

FORMAT is "plain", "int8", "int4", "fp8", or one of a grid (grid_sum.py); GROUP is the inputs that share a scale, or 0.

Operands come as tuples:

    of a kernel, a tuple each for its groups: x, w, scale, N, width, stride_x, stride_w
    of a tile (`tile_operand`): x_rows [BLOCK_T, 1], in_t [BLOCK_T], w_rows [BLOCK_M, 1], in_m [BLOCK_M],
        scale_rows [BLOCK_M], N, width

N: inputs; width: stored numbers in a row of w, half of N for int4, or bytes of a panel's codes on a grid; x_rows,
w_rows, scale_rows: where rows begin; in_t, in_m: which of the tile's tokens and outputs there are.
"""

from .dequant_tile import weight_tile
from .grid_sum import GRID_GROUP, STEP_BYTES, grid_partial_sum, grid_rows
from .optional_triton import tl, triton
from .token_tile import x_step


@triton.jit
def pick(values: tl.tuple, group: tl.tensor) -> tl.tensor:
    """values[group], of one to three."""
    value = values[0]
    if len(values) > 1:
        value = tl.where(group == 1, values[1], value)
    if len(values) > 2:
        value = tl.where(group == 2, values[2], value)
    return value


@triton.jit
def group_of(tile: tl.tensor, outputs: tl.tuple, BLOCK_M: tl.constexpr) -> tl.tuple:
    """The group that a tile of outputs lies in, its number there, the group's first column of y, and its outputs."""
    group, column = tile * 0, tile * 0
    for i in tl.static_range(len(outputs) - 1):
        tiles = tl.cdiv(outputs[i], BLOCK_M)
        beyond = (group == i) & (tile >= tiles)
        tile = tl.where(beyond, tile - tiles, tile)
        column = tl.where(beyond, column + outputs[i], column)
        group = tl.where(beyond, i + 1, group)
    return group, tile, column, pick(outputs, group)


@triton.jit
def pick_operand(operands: tl.tuple, group: tl.tensor) -> tl.tuple:
    """One group's operand of a kernel."""
    x, w, scale, N, width, stride_x, stride_w = operands
    return (
        pick(x, group),
        pick(w, group),
        pick(scale, group),
        pick(N, group),
        pick(width, group),
        pick(stride_x, group),
        pick(stride_w, group),
    )


@triton.jit
def tile_operand(
    operand: tl.tuple,
    t: tl.tensor,
    in_t: tl.tensor,
    m: tl.tensor,
    in_m: tl.tensor,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
) -> tl.tuple:
    """A tile's part of one group's operand: tokens t and outputs m."""
    x, w, scale, N, width, stride_x, stride_w = operand
    x_rows = x + t.to(tl.int64)[:, None] * stride_x
    if GROUP == GRID_GROUP:
        w_rows, scale_rows = grid_rows(w, scale, m, N, width, FORMAT)
    else:
        w_rows = w + m.to(tl.int64)[:, None] * stride_w
        scale_rows = scale + m.to(tl.int64) * (tl.cdiv(N, GROUP) if GROUP > 0 else 1)
    return x_rows, in_t, w_rows, in_m, scale_rows, N, width


@triton.jit
def either(condition: tl.tensor, first: tl.tuple, second: tl.tuple) -> tl.tuple:
    """One of two operands of a group and of one format."""
    return (
        tl.where(condition, first[0], second[0]),
        tl.where(condition, first[1], second[1]),
        tl.where(condition, first[2], second[2]),
        tl.where(condition, first[3], second[3]),
        tl.where(condition, first[4], second[4]),
        tl.where(condition, first[5], second[5]),
        tl.where(condition, first[6], second[6]),
    )


@triton.jit
def for_tokens(operand: tl.tuple, in_t: tl.tensor) -> tl.tuple:
    """A tile's operand that other tokens see as zeros; without any of them it has no inputs."""
    inputs = tl.where(any_of(in_t), operand[5], 0)
    return operand[0], in_t, operand[2], operand[3], operand[4], inputs, operand[6]


@triton.jit
def first_number(
    split: tl.tensor, steps: tl.tensor, FORMAT: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr
) -> tl.tensor:
    """Where in a row of stored weights a split begins."""
    if GROUP == GRID_GROUP:
        return split * steps * (2 * STEP_BYTES if FORMAT == "Q8_0" else STEP_BYTES)
    else:
        return split * steps * (BLOCK_N // 2 if FORMAT == "int4" else BLOCK_N)


@triton.jit
def partial_sum(
    operand: tl.tuple,
    split: tl.tensor,
    steps: tl.tensor,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """The scaled sum over the inputs of a split, [BLOCK_M, BLOCK_T] float32, in ascending order of n.

    operand: of a tile.
    steps: steps of BLOCK_N inputs in a split.
    """
    if GROUP == GRID_GROUP:
        return grid_partial_sum(operand, split, steps, FORMAT)
    else:
        return _row_partial_sum(operand, split, steps, FORMAT, GROUP, BLOCK_N)


@triton.jit
def _row_partial_sum(
    operand: tl.tuple,
    split: tl.tensor,
    steps: tl.tensor,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """As `partial_sum`, with weights that lie in rows."""
    x_rows, in_t, w_rows, in_m, scale_rows, N, width = operand
    acc = tl.zeros((w_rows.shape[0], x_rows.shape[0]), dtype=tl.float32)
    first = split * steps
    last = tl.minimum(first + steps, tl.cdiv(N, BLOCK_N))
    if GROUP > 0:
        groups = tl.cdiv(N, GROUP)
        step_scale = tl.load(scale_rows + first * BLOCK_N // GROUP, mask=in_m, other=0.0)
    for step in range(first, last):
        x_tile = x_step(x_rows, in_t, N, step, BLOCK_N)
        w_tile = weight_tile(w_rows, in_m, step, width, FORMAT, BLOCK_N, x_tile.dtype)
        if GROUP > 0:
            # A step ahead: no product waits for the scale of its own group.
            group = tl.minimum((step + 1) * BLOCK_N // GROUP, groups - 1)
            next_scale = tl.load(scale_rows + group, mask=in_m, other=0.0)
            acc += tl.dot(w_tile, tl.trans(x_tile), input_precision="ieee") * step_scale[:, None]
            step_scale = next_scale
        else:
            acc = tl.dot(w_tile, tl.trans(x_tile), acc, input_precision="ieee")
    if FORMAT != "plain" and GROUP == 0:
        acc = acc * tl.load(scale_rows, mask=in_m, other=0.0)[:, None]
    return acc


@triton.jit
def sum_of_splits(
    acc: tl.tensor,
    operand: tl.tuple,
    first: tl.tensor,
    last: tl.tensor,
    steps: tl.tensor,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """acc plus the sums of the splits from `first` to before `last`, in their order; others as in `partial_sum`."""
    for split in range(first, last):
        acc += partial_sum(operand, split, steps, FORMAT, GROUP, BLOCK_N)
    return acc


@triton.jit
def adapted_tokens(slot: tl.tensor, t: tl.tensor, in_t: tl.tensor) -> tl.tensor:
    """Which of the tile's tokens are not in slot 0, [BLOCK_T]."""
    return tl.load(slot + t, mask=in_t, other=0) != 0


@triton.jit
def any_of(condition: tl.tensor) -> tl.tensor:
    return tl.max(condition.to(tl.int32), 0) != 0


@triton.jit
def slot_scales(
    table: tl.tensor,
    slot: tl.tensor,
    t: tl.tensor,
    in_t: tl.tensor,
    m: tl.tensor,
    in_m: tl.tensor,
    S: tl.tensor,
    stride_table: tl.tensor,
) -> tl.tensor:
    """table[slot[t], m] as [BLOCK_M, BLOCK_T]. A slot outside the table gives NaN, no read."""
    row = tl.load(slot + t, mask=in_t, other=0)
    known = ((row >= 0) & (row < S) & in_t)[None, :] & in_m[:, None]
    address = table + row.to(tl.int64)[None, :] * stride_table + m[:, None]
    return tl.load(address, mask=known, other=float("nan"))


@triton.jit
def finished(
    acc: tl.tensor,
    table: tl.tensor,
    slot: tl.tensor,
    bias: tl.tensor,
    t: tl.tensor,
    in_t: tl.tensor,
    m: tl.tensor,
    in_m: tl.tensor,
    S: tl.tensor,
    stride_table: tl.tensor,
) -> tl.tensor:
    """The sum times the slots' scales plus the bias, as far as there are any; m: columns of y."""
    if table is not None:
        acc = acc * slot_scales(table, slot, t, in_t, m, in_m, S, stride_table)
    if bias is not None:
        acc = acc + tl.load(bias + m, mask=in_m, other=0.0).to(tl.float32)[:, None]
    return acc


@triton.jit
def store_tile(
    value: tl.tensor,
    y: tl.tensor,
    t: tl.tensor,
    in_t: tl.tensor,
    m: tl.tensor,
    in_m: tl.tensor,
    stride_y: tl.tensor,
) -> None:
    """Stores y[t, m] in y's dtype."""
    address = y + t.to(tl.int64)[None, :] * stride_y + m[:, None]
    tl.store(address, value.to(y.dtype.element_ty), mask=in_m[:, None] & in_t[None, :])
