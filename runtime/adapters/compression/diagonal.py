"""The diagonal variant: adapters over shared components, each with singular values of its own.

    X_i ~ U diag(s_i) V        minimises sum_i ||X_i - U diag(s_i) V||^2

X [n, M, N]   U [M, K]   V [K, N]   s [n, K]

Alternating least squares: with two of U, V and s fixed, the third is a linear least squares problem whose normal
equations are K x K (Compress-then-Serve, arXiv 2407.00066; the canonical polyadic decomposition of X). A sweep costs
2 R (M + N) K multiplications and additions for each of three products, R being the sum of the adapters' ranks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .stack import Stack

# A fit ends where a sweep takes less than this part of the error away, or nothing is left of it, or after so many.
_LEAST_GAIN = 1e-4
_NO_ERROR = 1e-7
_MAX_SWEEPS = 500
# After so many the better of two starts is known.
_TRIAL_SWEEPS = 10
# Of the trace of the normal equations, well above its rounding: parallel components have no single solution.
_RIDGE = 1e-14
# Products with a matrix and its transpose that find its leading singular vectors, about.
_POWERS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Diagonal:
    """A basis of one matrix, float64.

    u: [M, K] and v: [N, K], columns of norm 1.
    """

    u: Tensor
    v: Tensor

    def coefficients(self, stack: Stack) -> Tensor:
        """s [n, K] of the least error."""
        return _solved(_gram(self.u) * _gram(self.v), self._projections(stack))

    def squared_errors(self, stack: Stack) -> Tensor:
        """||X_i - U diag(s_i) V||^2 / ||X_i||^2 [n] for the best s; 0 where there is nothing to approximate."""
        return self._squared_errors(stack, self.coefficients(stack))

    def _squared_errors(self, stack: Stack, sigma: Tensor) -> Tensor:
        gram = _gram(self.u) * _gram(self.v)
        rest = 1 + ((sigma @ gram - 2 * self._projections(stack)) * sigma).sum(1)
        return torch.where(stack.norms > 0, rest, 0).clamp(min=0)

    def _projections(self, stack: Stack) -> Tensor:
        """diag(U^T X_i V^T) [n, K]."""
        return stack.sum_of((stack.left @ self.u) * (stack.right @ self.v))


def fit_diagonal(stack: Stack, rank: int, generator: torch.Generator) -> Diagonal:
    """The better of two fits: from the adapters' largest components, and from the singular vectors of a random sum.

    The first keeps all of them if K is at least the sum of their ranks, and then nothing is lost.
    """
    starts = (_of_largest(stack, rank, generator), _of_random_sum(stack, rank, generator))
    trials = [_fit(stack, start, _TRIAL_SWEEPS) for start in starts]
    better, _ = min(trials, key=lambda trial: trial[1])
    return _fit(stack, better, _MAX_SWEEPS)[0]


def _fit(stack: Stack, basis: Diagonal, sweeps: int) -> tuple[Diagonal, float]:
    """A basis after at most so many sweeps, and its error."""
    sigma = basis.coefficients(stack)
    error = _error(stack, basis, sigma)
    for _ in range(sweeps):
        if error < _NO_ERROR:
            break
        swept = _sweep(stack, basis, sigma)
        sigma = swept.coefficients(stack)
        before, error = error, _error(stack, swept, sigma)
        if error > before:
            return basis, before
        basis = swept
        if before - error < _LEAST_GAIN * before:
            break
    return basis, error


def _error(stack: Stack, basis: Diagonal, sigma: Tensor) -> float:
    return basis._squared_errors(stack, sigma).mean().sqrt().item()


def _sweep(stack: Stack, basis: Diagonal, sigma: Tensor) -> Diagonal:
    """U for the old V and s, then V for the new U and the old s."""
    mine = sigma[stack.owner]
    u = _solved(_gram(basis.v) * _gram(sigma), stack.left.T @ ((stack.right @ basis.v) * mine))
    v = _solved(_gram(u) * _gram(sigma), stack.right.T @ ((stack.left @ u) * mine))
    return Diagonal(_normalised(u), _normalised(v))


def _solved(gram: Tensor, right: Tensor) -> Tensor:
    """Y of the normal equations Y gram = right."""
    K = len(gram)
    ridge = _RIDGE * gram.trace().clamp(min=1e-280)
    factor = torch.linalg.cholesky(gram + ridge * torch.eye(K, dtype=gram.dtype))
    return torch.cholesky_solve(right.T, factor).T


def _gram(columns: Tensor) -> Tensor:
    return columns.T @ columns


def _normalised(columns: Tensor) -> Tensor:
    return columns / columns.norm(dim=0).clamp(min=1e-300)


def _of_largest(stack: Stack, rank: int, generator: torch.Generator) -> Diagonal:
    """The adapters' own components of the largest singular values."""
    chosen = stack.left.norm(dim=1).argsort(descending=True, stable=True)[:rank]
    return _filled(stack.left[chosen].T, stack.right[chosen].T, rank, generator)


def _of_random_sum(stack: Stack, rank: int, generator: torch.Generator) -> Diagonal:
    """The leading components of sum_i g_i X_i; random g, so that adapters do not cancel."""
    weights = torch.randn(len(stack), dtype=torch.float64, generator=generator)[stack.owner]
    left = stack.left * weights[:, None]
    most = min(rank, left.shape[1], stack.right.shape[1])
    v = torch.randn(stack.right.shape[1], most, dtype=torch.float64, generator=generator)
    for _ in range(_POWERS):
        u = torch.linalg.qr(left.T @ (stack.right @ v)).Q
        v = torch.linalg.qr(stack.right.T @ (left @ u)).Q
    a, _, b = torch.linalg.svd((left @ u).T @ (stack.right @ v))
    return _filled(u @ a, v @ b.T, rank, generator)


def _filled(u: Tensor, v: Tensor, rank: int, generator: torch.Generator) -> Diagonal:
    """Columns of norm 1, as many as wanted: what is missing is random."""
    missing = rank - u.shape[1]
    extra = [torch.randn(len(x), missing, dtype=torch.float64, generator=generator) for x in (u, v)]
    return Diagonal(*(_normalised(torch.cat(pair, 1)) for pair in zip((u, v), extra, strict=True)))
