"""What many adapters add to one matrix, as thin factors one above the other; no M x N matrix is ever made."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora import LoraPair


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Semantics: X_i = sum of left[k] right[k]^T over the rows k with owner[k] = i, each of norm 1.

    An adapter that leaves the matrix alone owns no row. Norms are taken away so that no adapter is lost beside a
    larger one.

    left: [R, M], float64, the left singular vectors of each X_i times its singular values, the largest first.
    right: [R, N], float64, its right singular vectors.
    owner: [R].
    norms: [n], ||X_i|| before; 0 where an adapter leaves the matrix alone.
    """

    left: Tensor
    right: Tensor
    owner: Tensor
    norms: Tensor

    @classmethod
    def of(cls, pairs: Sequence[LoraPair | None]) -> "Stack":
        """pairs: what each adapter adds to the matrix; at least one adds something."""
        parts = [_thin_svd(pair) if pair is not None else None for pair in pairs]
        norms = [0.0 if part is None else part[0].square().sum().sqrt().item() for part in parts]
        kept = [(i, part) for i, part in enumerate(parts) if part is not None and norms[i]]
        if not kept:
            return cls._of_zeros(next(pair for pair in pairs if pair is not None), len(pairs))
        return cls(
            left=torch.cat([left * (sigma / norms[i])[:, None] for i, (sigma, left, _) in kept]),
            right=torch.cat([right for _, (_, _, right) in kept]),
            owner=torch.tensor([i for i, (sigma, _, _) in kept for _ in sigma]),
            norms=torch.tensor(norms, dtype=torch.float64),
        )

    @classmethod
    def _of_zeros(cls, pair: LoraPair, count: int) -> "Stack":
        left, right = (torch.zeros(0, size, dtype=torch.float64) for size in (len(pair.b), pair.a.shape[1]))
        return cls(left, right, torch.zeros(0, dtype=torch.int64), torch.zeros(count, dtype=torch.float64))

    def __len__(self) -> int:
        """Adapters, those that leave the matrix alone included."""
        return len(self.norms)

    def select(self, adapters: Sequence[int]) -> "Stack":
        """The stack of some adapters, numbered anew."""
        number = torch.full((len(self),), -1)
        number[list(adapters)] = torch.arange(len(adapters))
        owner = number[self.owner]
        kept = owner >= 0
        return Stack(self.left[kept], self.right[kept], owner[kept], self.norms[list(adapters)])

    def sum_of(self, values: Tensor) -> Tensor:
        """[R, K] -> [n, K], the sums over each adapter's rows."""
        total = torch.zeros(len(self), values.shape[1], dtype=values.dtype)
        return total.index_add_(0, self.owner, values)


def _thin_svd(pair: LoraPair) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values [r] of scaling * B A, left vectors [r, M] and right ones [r, N], without its null space."""
    q_left, r_left = torch.linalg.qr(pair.b.double() * pair.scaling)
    q_right, r_right = torch.linalg.qr(pair.a.double().T)
    u, sigma, vt = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    rank = int((sigma > sigma[0] * 1e-12).sum())
    return sigma[:rank], (q_left @ u[:, :rank]).T, vt[:rank] @ q_right.T
