"""What the Triton GEMM is made of: summing the inputs, scaling, and storing a tile.

    y[t, m] = sum over n of w[m, n] x[t, n]

The weights are the left operand of the matrix instructions, [BLOCK_M, BLOCK_N], the tokens the right one: the
instructions of sm_90 and sm_100 want 64 or 128 rows on the left and are content with 16 columns on the right.
Quantised weights stay small until they are in registers, where they become x's dtype, exactly; their scales are
applied in float32, one a row to the finished sum, one a group to the sum of a step.

FORMAT is "plain", "int8", "int4" or "fp8"; GROUP is the inputs that share a scale, or 0. The interpreter's dot is
wrong for bf16 operands, so there they become float32 first.
"""

from .dequant_tile import weight_tile
from .optional_triton import INTERPRETED, tl, triton


@triton.jit
def partial_sum(
    x_rows: tl.tensor,
    w_rows: tl.tensor,
    scale_rows: tl.tensor,
    in_t: tl.tensor,
    in_m: tl.tensor,
    N: tl.tensor,
    width: tl.tensor,
    split: tl.tensor,
    steps: tl.tensor,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """The sum over the inputs of a split, [BLOCK_M, BLOCK_T] float32, in ascending order of n.

    x_rows, w_rows: where the rows of the tile's tokens and outputs begin, [BLOCK_T, 1] and [BLOCK_M, 1].
    scale_rows: where the scales of its outputs begin, [BLOCK_M], or None; read here if GROUP is not 0.
    in_t, in_m: which of its tokens and outputs there are.
    width: stored numbers in a row of w, half of N for int4.
    steps: steps of BLOCK_N inputs in a split.
    """
    acc = tl.zeros((w_rows.shape[0], x_rows.shape[0]), dtype=tl.float32)
    first = split * steps
    last = tl.minimum(first + steps, tl.cdiv(N, BLOCK_N))
    if GROUP > 0:
        groups = tl.cdiv(N, GROUP)
        step_scale = tl.load(scale_rows + first * BLOCK_N // GROUP, mask=in_m, other=0.0)
    for step in range(first, last):
        n = step * BLOCK_N + tl.arange(0, BLOCK_N)
        x_tile = tl.load(x_rows + n[None, :], mask=in_t[:, None] & (n < N)[None, :], other=0.0)
        if INTERPRETED:
            x_tile = x_tile.to(tl.float32)
        w_tile = weight_tile(w_rows, in_m, step, width, FORMAT, BLOCK_N, x_tile.dtype)
        if GROUP > 0:
            # A step ahead: no product waits for the scale of its own group.
            group = tl.minimum((step + 1) * BLOCK_N // GROUP, groups - 1)
            next_scale = tl.load(scale_rows + group, mask=in_m, other=0.0)
            acc += tl.dot(w_tile, tl.trans(x_tile), input_precision="ieee") * step_scale[:, None]
            step_scale = next_scale
        else:
            acc = tl.dot(w_tile, tl.trans(x_tile), acc, input_precision="ieee")
    return acc


@triton.jit
def serial_sum(
    x_rows: tl.tensor,
    w_rows: tl.tensor,
    scale_rows: tl.tensor,
    in_t: tl.tensor,
    in_m: tl.tensor,
    N: tl.tensor,
    width: tl.tensor,
    splits: tl.tensor,
    steps: tl.tensor,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """The sums of all splits, added to zero in their order; arguments as in `partial_sum`."""
    acc = tl.zeros((w_rows.shape[0], x_rows.shape[0]), dtype=tl.float32)
    for split in range(splits):
        acc += partial_sum(
            x_rows, w_rows, scale_rows, in_t, in_m, N, width, split, steps, FORMAT, GROUP, BLOCK_N
        )
    return acc


@triton.jit
def scale_rows(scale: tl.tensor, m: tl.tensor, N: tl.tensor, GROUP: tl.constexpr) -> tl.tensor:
    """Where the scales of outputs m begin in scale, [M, groups], or [M, 1] if GROUP is 0."""
    if GROUP > 0:
        return scale + m.to(tl.int64) * tl.cdiv(N, GROUP)
    else:
        return scale + m


@triton.jit
def slot_scales(
    table: tl.tensor,
    slot: tl.tensor,
    t: tl.tensor,
    m: tl.tensor,
    T: tl.tensor,
    M: tl.tensor,
    S: tl.tensor,
    stride_table: tl.tensor,
) -> tl.tensor:
    """table[slot[t], m] as [BLOCK_M, BLOCK_T]. A slot outside the table gives NaN, no read."""
    row = tl.load(slot + t, mask=t < T, other=0)
    known = ((row >= 0) & (row < S))[None, :] & (m < M)[:, None] & (t < T)[None, :]
    address = table + row.to(tl.int64)[None, :] * stride_table + m[:, None]
    return tl.load(address, mask=known, other=float("nan"))


@triton.jit
def store_tile(
    acc: tl.tensor,
    y: tl.tensor,
    bias: tl.tensor,
    t: tl.tensor,
    m: tl.tensor,
    T: tl.tensor,
    M: tl.tensor,
) -> None:
    """Adds the bias, if there is one, and stores y[t, m] in y's dtype; y is contiguous."""
    if bias is not None:
        acc = acc + tl.load(bias + m, mask=m < M, other=0.0).to(tl.float32)[:, None]
    mask = (m < M)[:, None] & (t < T)[None, :]
    tl.store(y + t.to(tl.int64)[None, :] * M + m[:, None], acc.to(y.dtype.element_ty), mask=mask)
