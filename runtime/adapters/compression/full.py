"""The full variant: adapters between two shared subspaces, each with a K x K matrix of its own.

    X_i ~ U C_i V        minimises sum_i ||X_i - U C_i V||^2

X [n, M, N]   U [M, K], orthonormal columns   V [K, N], orthonormal rows   C [n, K, K]

The best C_i is U^T X_i V^T, which has no larger rank than X_i: it is kept as two thin factors. For a fixed V the best U
spans the leading eigenvectors of sum_i X_i V^T V X_i^T; each half of a sweep is a step of orthogonal iteration towards
them, which never enlarges the error (Compress-then-Serve, arXiv 2407.00066).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .stack import Stack

_LEAST_GAIN = 1e-4
_NO_ERROR = 1e-7
_MAX_SWEEPS = 200
# Steps of orthogonal iteration that find the start.
_POWERS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Full:
    """Two subspaces of one matrix, float64, each as large as K or, if that is less, the matrix or the adapters allow.

    u: [M, K] and v: [N, K], orthonormal columns.
    """

    u: Tensor
    v: Tensor

    def cores(self, stack: Stack) -> tuple[Tensor, Tensor]:
        """C_i as factors: [R, K] and [R, K], C_i being the sum of left[k] right[k]^T over the adapter's rows."""
        return stack.left @ self.u, stack.right @ self.v

    def squared_errors(self, stack: Stack) -> Tensor:
        """||X_i - U C_i V||^2 / ||X_i||^2 [n]; 0 where there is nothing to approximate."""
        errors = torch.zeros(len(stack), dtype=torch.float64)
        for i, left, right in _each(stack, *self.cores(stack)):
            errors[i] = 1 - (left.T @ right).square().sum()
        return errors.clamp(min=0)


def fit_full(stack: Stack, rank: int, generator: torch.Generator) -> Full:
    """The fit from the leading singular vectors of the stacked factors on."""
    basis = Full(
        _leading(stack.left, rank, generator),
        # Each row as large as in X_i.
        _leading(stack.right * stack.left.norm(dim=1, keepdim=True), rank, generator),
    )
    error = _error(stack, basis)
    for _ in range(_MAX_SWEEPS):
        u = _turned(stack.left, stack.right @ basis.v, basis.u, stack)
        basis = Full(u, _turned(stack.right, stack.left @ u, basis.v, stack))
        before, error = error, _error(stack, basis)
        if error < _NO_ERROR or before - error < _LEAST_GAIN * before:
            break
    return basis


def _error(stack: Stack, basis: Full) -> float:
    return basis.squared_errors(stack).mean().sqrt().item()


def _leading(rows: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """The leading right singular vectors of rows [R, M], about."""
    most = min(rank, *rows.shape)
    vectors = torch.randn(rows.shape[1], most, dtype=torch.float64, generator=generator)
    for _ in range(_POWERS):
        vectors = torch.linalg.qr(rows.T @ (rows @ vectors)).Q
    return vectors


def _turned(rows: Tensor, other: Tensor, basis: Tensor, stack: Stack) -> Tensor:
    """One step of orthogonal iteration of sum_i rows_i^T other_i other_i^T rows_i, from a basis on."""
    mine = rows @ basis
    moved = torch.empty_like(mine)
    start = 0
    for _, each, its in _each(stack, mine, other):
        moved[start : start + len(each)] = its @ (its.T @ each)
        start += len(each)
    return torch.linalg.qr(rows.T @ moved).Q


def _each(stack: Stack, left: Tensor, right: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each adapter with rows, and its rows of two tensors."""
    counts = torch.bincount(stack.owner, minlength=len(stack)).tolist()
    for i, (a, b) in enumerate(zip(left.split(counts), right.split(counts), strict=True)):
        if len(a):
            yield i, a, b
