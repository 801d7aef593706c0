"""What the Triton products are made of: summing a part, adding the parts, scaling and finishing a tile.

    y[t, m] = sum over n of w[m, n] x[t, n]

The weights are the left operand of the matrix instructions, [BLOCK_M, BLOCK_N], the tokens the right one: the
instructions of sm_90 and sm_100 want 64 or 128 rows on the left and are content with 16 columns on the right.
Quantised weights stay small until they are in registers, where they become x's dtype, exactly; their scales are
applied in float32, one a row to the finished sum, one a group to the sum of a step.

FORMAT is "plain", "int8", "int4" or "fp8"; GROUP is the inputs that share a scale, or 0. UPCAST is for the
interpreter, whose dot is wrong for bf16 operands.
"""

from .dequant_tile import weight_tile
from .optional_triton import tl, triton


@triton.jit
def part_sum(
    x: tl.tensor,
    w: tl.tensor,
    w_scale: tl.tensor,
    t: tl.tensor,
    m: tl.tensor,
    part: tl.tensor,
    part_steps: tl.tensor,
    T: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    width: tl.tensor,
    stride_x: tl.tensor,
    stride_w: tl.tensor,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
) -> tl.tensor:
    """The sum over the inputs of a part, [BLOCK_M, BLOCK_T] float32, in ascending order of n."""
    x_rows = x + t.to(tl.int64)[:, None] * stride_x
    w_rows = w + m.to(tl.int64)[:, None] * stride_w
    acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
    first = part * part_steps
    last = tl.minimum(first + part_steps, tl.cdiv(N, BLOCK_N))
    if GROUP > 0:
        groups = tl.cdiv(N, GROUP)
        w_scales = w_scale + m.to(tl.int64) * groups
        scale = tl.load(w_scales + first * BLOCK_N // GROUP, mask=m < M, other=0.0)
    for step in range(first, last):
        n = step * BLOCK_N + tl.arange(0, BLOCK_N)
        x_tile = tl.load(x_rows + n[None, :], mask=(t < T)[:, None] & (n < N)[None, :], other=0.0)
        if UPCAST:
            x_tile = x_tile.to(tl.float32)
        w_tile = weight_tile(w_rows, m < M, step, width, FORMAT, BLOCK_N, x_tile.dtype)
        if GROUP > 0:
            # A step ahead: no product waits for the scale of its own group.
            group = tl.minimum((step + 1) * BLOCK_N // GROUP, groups - 1)
            ahead = tl.load(w_scales + group, mask=m < M, other=0.0)
            acc += tl.dot(w_tile, tl.trans(x_tile), input_precision="ieee") * scale[:, None]
            scale = ahead
        else:
            acc = tl.dot(w_tile, tl.trans(x_tile), acc, input_precision="ieee")
    return acc


@triton.jit
def leave_part(
    acc: tl.tensor, workspace: tl.tensor, index: tl.tensor, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr
) -> None:
    """Stores a part's sum for the program that will add the parts up."""
    cell = tl.arange(0, BLOCK_M)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
    tl.store(workspace + tl.cast(index, tl.int64) * (BLOCK_M * BLOCK_T) + cell, acc, cache_modifier=".cg")


@triton.jit
def arrive_last(counter: tl.tensor, programs: tl.tensor) -> tl.tensor:
    """Whether all other programs of the tile have left their parts. The last one sets the counter back to 0."""
    # All threads have stored before one of them counts.
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def added_parts(
    workspace: tl.tensor,
    index: tl.tensor,
    distance: tl.tensor,
    parts: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> tl.tensor:
    """The parts that others left, from `index` on, `distance` tiles apart, added in their order."""
    cell = tl.arange(0, BLOCK_M)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
    for part in range(parts):
        at = tl.cast(index, tl.int64) + tl.cast(part, tl.int64) * distance
        acc += tl.load(workspace + at * (BLOCK_M * BLOCK_T) + cell, cache_modifier=".cg")
    return acc


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
def mixed_scales(
    table: tl.tensor,
    alpha: tl.tensor,
    t: tl.tensor,
    m: tl.tensor,
    T: tl.tensor,
    M: tl.tensor,
    E: tl.tensor,
    stride_table: tl.tensor,
    stride_alpha: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> tl.tensor:
    """The sum over e of alpha[t, e] table[e, m] as [BLOCK_M, BLOCK_T], added in the order of the experts."""
    acc = tl.zeros((BLOCK_M, BLOCK_T), dtype=tl.float32)
    for e in range(E):
        weight = tl.load(alpha + t.to(tl.int64) * stride_alpha + e, mask=t < T, other=0.0)
        row = tl.load(table + tl.cast(e, tl.int64) * stride_table + m, mask=m < M, other=0.0)
        acc += weight[None, :] * row[:, None]
    return acc


@triton.jit
def store_tile(
    acc: tl.tensor,
    y: tl.tensor,
    bias: tl.tensor,
    t: tl.tensor,
    m: tl.tensor,
    T: tl.tensor,
    M: tl.tensor,
    stride_y: tl.tensor,
    HAS_BIAS: tl.constexpr,
) -> None:
    """Adds the bias and stores y[t, m] in y's dtype."""
    if HAS_BIAS:
        acc = acc + tl.load(bias + m, mask=m < M, other=0.0).to(tl.float32)[:, None]
    mask = (m < M)[:, None] & (t < T)[None, :]
    tl.store(y + t.to(tl.int64)[None, :] * stride_y + m[:, None], acc.to(y.dtype.element_ty), mask=mask)
