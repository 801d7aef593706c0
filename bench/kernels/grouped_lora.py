"""The baseline that multi-LoRA servers run: a grouped LoRA in Triton, tokens sorted by adapter.

    y[t] += B[adapter[t]] (A[adapter[t]] x[t])

    x [T, N]   a [E, r, N]   b [E, M, r]   order [T]   tiles [3, P]   ->   y [T, M], added to

T tokens, E adapters of rank r. Tokens of an adapter are gathered into tiles of 16, so that A and B are read once
a tile; the first product is split over its inputs and added up atomically, since r outputs alone cannot fill a
GPU. Bytes: r (M + N) a tile. Sorting is done once for all layers of a step and is not timed.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.kernels.triton.optional_triton import tl, triton

BLOCK_T = 16
BLOCK_M = 128
BLOCK_N = 128
SPLITS = 16


@dataclass(frozen=True, slots=True)
class Groups:
    """order: [T] int32, tokens sorted by adapter. tiles: [3, P] int32, adapter, first and end of each tile."""

    order: Tensor
    tiles: Tensor

    @classmethod
    def of(cls, adapter: Tensor) -> "Groups":
        """adapter: [T], one a token."""
        values = adapter.cpu().long()
        order = values.argsort(stable=True)
        tiles = []
        first = 0
        for index, count in enumerate(torch.bincount(values).tolist()):
            end = first + count
            tiles += [(index, start, min(start + BLOCK_T, end)) for start in range(first, end, BLOCK_T)]
            first = end
        table = torch.tensor(tiles, dtype=torch.int32).reshape(-1, 3).T.contiguous()
        return cls(order.int().to(adapter.device), table.to(adapter.device))


def grouped_lora_ref(y: Tensor, x: Tensor, a: Tensor, b: Tensor, adapter: Tensor) -> Tensor:
    """Semantics: y[t] + b[adapter[t]] @ (a[adapter[t]] @ x[t]), in float32, then y's dtype."""
    rows = adapter.long()
    projected = torch.einsum("trn,tn->tr", a.float()[rows], x.float())
    return (y.float() + torch.einsum("tmr,tr->tm", b.float()[rows], projected)).to(y.dtype)


@triton.jit
def _shrink_kernel(
    x: tl.tensor,
    a: tl.tensor,
    h: tl.tensor,
    order: tl.tensor,
    tiles: tl.tensor,
    P: tl.tensor,
    N: tl.tensor,
    RANK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """h[place] += a[adapter] x[token] over a part of the inputs; a place is where a token stands in the order."""
    tile, split = tl.program_id(0), tl.program_id(1)
    adapter = tl.load(tiles + tile).to(tl.int64)
    place = tl.load(tiles + P + tile) + tl.arange(0, BLOCK_T)
    inside = place < tl.load(tiles + 2 * P + tile)
    token = tl.load(order + place, mask=inside, other=0).to(tl.int64)
    r = tl.arange(0, RANK)
    acc = tl.zeros((BLOCK_T, RANK), dtype=tl.float32)
    for begin in range(split * BLOCK_N, N, SPLITS * BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        x_tile = tl.load(
            x + token[:, None] * N + n[None, :], mask=inside[:, None] & (n < N)[None, :], other=0.0
        )
        a_tile = tl.load(a + (adapter * RANK + r)[None, :] * N + n[:, None], mask=(n < N)[:, None], other=0.0)
        if UPCAST:
            x_tile = x_tile.to(tl.float32)
            a_tile = a_tile.to(tl.float32)
        acc = tl.dot(x_tile, a_tile, acc, input_precision="ieee")
    tl.atomic_add(h + place[:, None] * RANK + r[None, :], acc, mask=inside[:, None])


@triton.jit
def _expand_kernel(
    h: tl.tensor,
    b: tl.tensor,
    y: tl.tensor,
    order: tl.tensor,
    tiles: tl.tensor,
    P: tl.tensor,
    M: tl.tensor,
    RANK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """y[token, m] += b[adapter, m] h[place]."""
    tile = tl.program_id(0)
    adapter = tl.load(tiles + tile).to(tl.int64)
    place = tl.load(tiles + P + tile) + tl.arange(0, BLOCK_T)
    inside = place < tl.load(tiles + 2 * P + tile)
    token = tl.load(order + place, mask=inside, other=0).to(tl.int64)
    r = tl.arange(0, RANK)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    h_tile = tl.load(h + place[:, None] * RANK + r[None, :], mask=inside[:, None], other=0.0)
    b_tile = tl.load(b + (adapter * M + m)[None, :] * RANK + r[:, None], mask=(m < M)[None, :], other=0.0)
    if UPCAST:
        b_tile = b_tile.to(tl.float32)
    else:
        h_tile = h_tile.to(b_tile.dtype)
    address = y + token[:, None] * M + m[None, :]
    mask = inside[:, None] & (m < M)[None, :]
    acc = tl.load(address, mask=mask, other=0.0).to(tl.float32)
    acc += tl.dot(h_tile, b_tile, input_precision="ieee")
    tl.store(address, acc.to(y.dtype.element_ty), mask=mask)


def grouped_lora(y: Tensor, x: Tensor, a: Tensor, b: Tensor, groups: Groups) -> Tensor:
    """Adds the adapters' outputs to y in place; all tensors contiguous, the rank a power of 2 of at least 16.

    Launches on CUDA, or in Triton's interpreter on CPU tensors.
    """
    (T, N), (_, M, rank) = x.shape, b.shape
    if rank < 16 or rank & (rank - 1):
        raise ValueError(f"grouped_lora: the rank must be a power of 2 of at least 16, not {rank}")
    for name, tensor in (("y", y), ("x", x), ("a", a), ("b", b)):
        if not tensor.is_contiguous():
            raise ValueError(f"grouped_lora: {name} must be contiguous")
    count = groups.tiles.shape[1]
    h = torch.zeros(T, rank, dtype=torch.float32, device=x.device)
    upcast = not x.is_cuda
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _shrink_kernel[(count, SPLITS)](
            x, a, h, groups.order, groups.tiles, count, N,
            RANK=rank, BLOCK_T=BLOCK_T, BLOCK_N=BLOCK_N, SPLITS=SPLITS, UPCAST=upcast,
        )  # fmt: skip
        _expand_kernel[(count, triton.cdiv(M, BLOCK_M))](
            h, b, y, groups.order, groups.tiles, count, M,
            RANK=rank, BLOCK_T=BLOCK_T, BLOCK_M=BLOCK_M, UPCAST=upcast,
        )  # fmt: skip
    return y
