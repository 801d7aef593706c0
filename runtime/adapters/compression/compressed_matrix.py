"""What a cluster's adapters add to one matrix, over its basis, float32."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import ZweaveError
from ..lora import LoraPair
from .diagonal import Diagonal
from .full import Full
from .stack import Stack


@dataclass(frozen=True, slots=True, eq=False)
class DiagonalMatrix:
    """Semantics: B_i A_i ~ u diag(sigma[i]) v.

    u: [M, K], columns of norm 1, those that the adapters use most first.
    v: [K, N], rows of norm 1.
    sigma: [n, K]; zero where an adapter leaves the matrix alone.
    error: [n], ||B_i A_i - u diag(sigma[i]) v|| / ||B_i A_i||.
    """

    u: Tensor
    v: Tensor
    sigma: Tensor
    error: Tensor

    @classmethod
    def of(cls, basis: Diagonal, stack: Stack) -> "DiagonalMatrix":
        sigma = basis.coefficients(stack)
        order = sigma.square().sum(0).argsort(descending=True, stable=True)
        return cls(
            u=_stored(basis.u[:, order]),
            v=_stored(basis.v[:, order].T),
            sigma=_stored((sigma * stack.norms[:, None])[:, order]),
            error=_stored(basis.squared_errors(stack).sqrt()),
        )

    def check(self) -> None:
        """Raises ZweaveError unless the shapes fit each other."""
        M, K, N, n = self.u.shape[0], self.u.shape[1], self.v.shape[1], len(self.sigma)
        _check(self.u, (M, K), self.v, (K, N), self.sigma, (n, K), self.error, (n,))

    def uses(self, row: int) -> bool:
        """Whether an adapter changes the matrix."""
        return bool(self.sigma[row].any())

    def pair(self, row: int) -> LoraPair:
        """An adapter's product, multiplied out as far as a LoRA's is."""
        return LoraPair(self.v, self.u * self.sigma[row], 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class FullMatrix:
    """Semantics: B_i A_i ~ u C_i v, C_i being the sum of left[k] right[k]^T over the rows k with owner[k] = i.

    u: [M, K], orthonormal columns; v: [K', N], orthonormal rows.
    left: [R, K]; right: [R, K'].
    owner: [R] int32, ascending.
    error: [n], ||B_i A_i - u C_i v|| / ||B_i A_i||.
    """

    u: Tensor
    v: Tensor
    left: Tensor
    right: Tensor
    owner: Tensor
    error: Tensor

    @classmethod
    def of(cls, basis: Full, stack: Stack) -> "FullMatrix":
        left, right = basis.cores(stack)
        return cls(
            u=_stored(basis.u),
            v=_stored(basis.v.T),
            left=_stored(left * stack.norms[stack.owner][:, None]),
            right=_stored(right),
            owner=stack.owner.int(),
            error=_stored(basis.squared_errors(stack).sqrt()),
        )

    def check(self) -> None:
        """Raises ZweaveError unless the shapes fit each other."""
        M, K, R = self.u.shape[0], self.u.shape[1], len(self.left)
        most, N = self.v.shape
        _check(self.u, (M, K), self.v, (most, N), self.left, (R, K), self.right, (R, most), self.owner, (R,))
        owner = self.owner.tolist()
        if owner != sorted(owner) or owner[0] < 0 or owner[-1] >= len(self.error):
            raise ZweaveError("its owners are not those of its adapters")

    def uses(self, row: int) -> bool:
        """Whether an adapter changes the matrix."""
        return bool((self.owner == row).any())

    def pair(self, row: int) -> LoraPair:
        """An adapter's product as a LoRA's, of the rank that it had."""
        mine = self.owner == row
        return LoraPair(self.right[mine] @ self.v, self.u @ self.left[mine].T, 1.0)


CompressedMatrix: TypeAlias = DiagonalMatrix | FullMatrix


def _stored(values: Tensor) -> Tensor:
    stored = values.float().contiguous()
    if not stored.isfinite().all():
        raise ZweaveError("an adapter is too large for float32: leave it out")
    return stored


def _check(*tensors_and_shapes: object) -> None:
    """Tensors and the shapes that they should have, by turns; none may be empty."""
    for tensor, shape in zip(tensors_and_shapes[::2], tensors_and_shapes[1::2], strict=True):
        assert isinstance(tensor, Tensor)
        if tuple(tensor.shape) != shape or not tensor.numel():
            raise ZweaveError(f"a tensor is {list(tensor.shape)}, which does not fit the others")
        if not torch.isfinite(tensor).all():
            raise ZweaveError("a tensor holds NaN or infinity")
