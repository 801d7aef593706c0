"""Products of several matrices for many tokens by PyTorch, those of equal shape as one batch.

A batch is made of views alone: the columns of y and of h that belong to matrices of one shape lie at equal distances,
and so do the matrices where they are parts of one allocation (`together`).
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor


def empty_together(
    shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """Matrices; those of equal shape that follow each other lie in one allocation, one after the other."""
    found: list[Tensor] = []
    for shape, run in groupby(shapes):
        found += torch.empty(len(list(run)), *shape, dtype=dtype, device=device).unbind()
    return tuple(found)


def together(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Matrices in allocations as of `empty_together`; one without another of its shape beside it is not copied."""
    found: list[Tensor] = []
    for _, run in groupby(parts, key=lambda part: part.shape):
        equal = list(run)
        found += torch.stack(equal).unbind() if len(equal) > 1 else [equal[0].contiguous()]
    return tuple(found)


def write_products(y: Tensor, x: Tensor, weights: Sequence[Tensor], shared: bool = False) -> None:
    """y = x W^T of each matrix, in columns one after the other.

    y: [T, sum of M]
    x: [T, sum of N], or [T, N] of all where it is shared
    weights: [M, N] of each
    """
    for target, part, weight in _batches(y, x, weights, shared):
        if weight.dim() == 3:
            torch.bmm(part, weight.mT, out=target)
        else:
            torch.mm(part, weight.T, out=target)


def add_products(y: Tensor, x: Tensor, weights: Sequence[Tensor]) -> None:
    """y += x W^T of each matrix; shapes as of `write_products`, x not shared."""
    for target, part, weight in _batches(y, x, weights, shared=False):
        if weight.dim() == 3:
            target.baddbmm_(part, weight.mT)
        else:
            target.addmm_(part, weight.T)


def _batches(
    y: Tensor, x: Tensor, weights: Sequence[Tensor], shared: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """y, x and weight of each product: matrices, or tensors of three dimensions for a batch."""
    column, source = 0, 0
    for run in _runs(weights):
        n, (M, N) = len(run), run[0].shape
        target = y[:, column : column + n * M]
        part = x if shared else x[:, source : source + n * N]
        column, source = column + n * M, source + n * N
        if n == 1:
            yield target, part, run[0]
            continue
        batch = run[0].as_strided((n, M, N), (_distance(*run[:2]), *run[0].stride()))
        yield _by_matrix(target, n), x.expand(n, *x.shape) if shared else _by_matrix(part, n), batch


def _by_matrix(block: Tensor, n: int) -> Tensor:
    """[T, n * M] as [n, T, M]."""
    return block.unflatten(1, (n, -1)).transpose(0, 1)


def _runs(weights: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Matrices that follow each other, of one shape and layout, at equal distances in one allocation."""
    start = 0
    for stop in range(1, len(weights)):
        if not _goes_on(weights[start : stop + 1]):
            yield weights[start:stop]
            start = stop
    yield weights[start:]


def _goes_on(run: Sequence[Tensor]) -> bool:
    """Whether the last matrix belongs to the run of those before."""
    first, before, last = run[0], run[-2], run[-1]
    return (
        last.shape == first.shape
        and last.stride() == first.stride()
        and last.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and _distance(before, last) == _distance(first, run[1]) > 0
    )


def _distance(one: Tensor, other: Tensor) -> int:
    return int(other.storage_offset() - one.storage_offset())
