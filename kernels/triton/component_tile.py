"""The two products of `add_components`: sums over the inputs first, then the outputs."""

from ..layout.packed import PANEL
from .gemm_tile import any_of, group_of, pick
from .optional_triton import INTERPRETED, tl, triton
from .pdl import wait_at_start

# Components of a page, see component_pages.py.
PAGE = tl.constexpr(PANEL)


@triton.jit
def _page_scales(
    scale: tl.tensor,
    slot: tl.tensor,
    t: tl.tensor,
    in_t: tl.tensor,
    page: tl.tensor,
    S: tl.tensor,
    stride_scale: tl.tensor,
) -> tl.tensor:
    """scale[slot[t], components of the page], [BLOCK_T, PAGE]. A slot outside the table gives NaN, no read."""
    row = tl.load(slot + t, mask=in_t, other=0)
    known = (row >= 0) & (row < S)
    address = scale + row.to(tl.int64)[:, None] * stride_scale + page * PAGE + tl.arange(0, PAGE)[None, :]
    found = tl.load(address, mask=(in_t & known)[:, None], other=0.0)
    return tl.where((in_t & ~known)[:, None], float("nan"), found)


@triton.jit
def _any_scale(scales: tl.tensor) -> tl.tensor:
    """Whether a token of the tile has the page; NaN counts."""
    return any_of(tl.max((scales != 0).to(tl.int32), 1))


@triton.jit
def _operand(tile: tl.tensor) -> tl.tensor:
    """What the dot takes: the interpreter's is wrong for bf16."""
    if INTERPRETED:
        tile = tile.to(tl.float32)
    return tile


@triton.jit(do_not_specialize=["T", "S", "A"])
def _component_sums_kernel(
    x: tl.tensor,
    vt: tl.tuple,
    scale: tl.tuple,
    slot: tl.tensor,
    pages: tl.tensor,
    h: tl.tensor,
    T: tl.tensor,
    N: tl.tensor,
    S: tl.tensor,
    A: tl.tensor,
    stride_x: tl.tensor,
    stride_page: tl.tensor,
    stride_scale: tl.tensor,
    SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """h[split, i, g, t] = the sum of vt_g[pages[i]] x[t] over the inputs of a split, for a tile of tokens."""
    wait_at_start(PDL)
    i, g, split = tl.program_id(0), tl.program_id(1) // SPLITS, tl.program_id(1) % SPLITS
    if i < tl.load(pages):
        page = tl.load(pages + 1 + i).to(tl.int64)
        t = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
        in_t = t < T
        if _any_scale(_page_scales(pick(scale, g), slot, t, in_t, page, S, stride_scale)):
            c = tl.arange(0, PAGE)
            rows = pick(vt, g) + page * stride_page + c.to(tl.int64)[:, None] * N
            x_rows = x + t.to(tl.int64)[:, None] * stride_x
            acc = tl.zeros((BLOCK_T, PAGE), dtype=tl.float32)
            for step in range(split * STEPS, tl.minimum((split + 1) * STEPS, tl.cdiv(N, BLOCK_N))):
                n = step * BLOCK_N + tl.arange(0, BLOCK_N)
                tokens = tl.load(x_rows + n[None, :], mask=in_t[:, None] & (n < N)[None, :], other=0.0)
                weights = tl.load(rows + n[None, :], mask=(n < N)[None, :], other=0.0)
                acc = tl.dot(_operand(tokens), tl.trans(_operand(weights)), acc, input_precision="ieee")
            first = (tl.cast(split, tl.int64) * A + i) * (len(vt) * T) + g * T
            tl.store(h + (first + t)[:, None] * PAGE + c[None, :], acc, mask=in_t[:, None])


@triton.jit(do_not_specialize=["T", "S", "A"])
def _add_components_kernel(
    y: tl.tensor,
    u: tl.tuple,
    scale: tl.tuple,
    slot: tl.tensor,
    pages: tl.tensor,
    h: tl.tensor,
    outputs: tl.tuple,
    T: tl.tensor,
    S: tl.tensor,
    A: tl.tensor,
    stride_y: tl.tensor,
    stride_page: tl.tensor,
    stride_scale: tl.tensor,
    SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y[t, m] += the sum over the pages of u_g (scale * h), for a tile; h as `_component_sums_kernel` leaves it."""
    wait_at_start(PDL)
    g, tile, column, M = group_of(tl.program_id(0), outputs, BLOCK_M)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    in_m, in_t, c = m < M, t < T, tl.arange(0, PAGE)
    acc = tl.zeros((BLOCK_T, BLOCK_M), dtype=tl.float32)
    adds = tl.program_id(0) < 0
    for i in range(tl.load(pages)):
        page = tl.load(pages + 1 + i).to(tl.int64)
        scales = _page_scales(pick(scale, g), slot, t, in_t, page, S, stride_scale)
        if _any_scale(scales):
            adds = True
            sums = tl.zeros((BLOCK_T, PAGE), dtype=tl.float32)
            for split in range(SPLITS):
                first = (tl.cast(split, tl.int64) * A + i) * (len(u) * T) + g * T
                sums += tl.load(h + (first + t)[:, None] * PAGE + c[None, :], mask=in_t[:, None], other=0.0)
            # Of tokens that have not the page the sums may be anything.
            scaled = tl.where(scales != 0, sums * scales, 0.0).to(y.dtype.element_ty)
            address = pick(u, g) + page * stride_page + c.to(tl.int64)[:, None] * M + m[None, :]
            weights = tl.load(address, mask=in_m[None, :], other=0.0)
            acc = tl.dot(_operand(scaled), _operand(weights), acc, input_precision="ieee")
    if adds:
        target = y + t.to(tl.int64)[:, None] * stride_y + (column + m)[None, :]
        mask = in_t[:, None] & in_m[None, :]
        value = tl.load(target, mask=mask, other=0.0).to(tl.float32) + acc
        tl.store(target, value.to(y.dtype.element_ty), mask=mask)
