"""Linears of one input as one: q, k and v, or gate and up, in each of the modes of a step on a GPU."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapted_linear import LinearMode
from .device_ops import DeviceOps
from .triton.checks import Factor

# Tokens from which on a product is bound by arithmetic, and a library's is the faster one (predicted).
LIBRARY_FROM = 129


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices one above the other.

    whole: [sum of rows, columns]
    parts: views of the single matrices
    """

    whole: Tensor
    parts: tuple[Tensor, ...]

    @classmethod
    def of(cls, parts: list[Tensor]) -> "Stack":
        """Copies matrices of equal width into a stack."""
        whole = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        return cls(whole, whole.split([len(part) for part in parts]))


@dataclass(frozen=True, slots=True)
class StackedLinear:
    """The weights of linears of one input, and the columns of the tables that differ by slot.

    ops: the kernels
    dense: W of each, or None
    vt, u: the factors of each, or None: vt [R, N], u [M, R]
    scale: [S, sum of R] float32, sigma * z, or None
    delta_rank: components of each that its delta may use
    delta: [S, sum of those] float32, sigma * (z - 1) of the leading components, or None
    bias: [sum of M], or None
    silu: the result is silu(y of the first) * (y of the second)
    library_from: tokens from which on the products are PyTorch's, whose order of sums depends on the number of tokens;
        None for never
    delta_factors: quantised factors of the deltas, the vt above each other and the u of each, in the place of the
        leading components of vt and u; not with `silu`. Or None
    """

    ops: DeviceOps
    dense: Stack | None
    vt: Stack | None
    u: tuple[Tensor, ...]
    scale: Tensor | None
    delta_rank: tuple[int, ...]
    delta: Tensor | None
    bias: Tensor | None
    silu: bool = False
    library_from: int | None = None
    delta_factors: tuple[Factor, tuple[Factor, ...]] | None = None

    def __call__(self, x: Tensor, slot: Tensor, mode: LinearMode) -> Tensor:
        """y [T, sum of M], or half as much with `silu`, of x [T, N] and slot [T] int32.

        mode: of all tokens. DENSE leaves slots out, DELTA is for slots that adapt leading components alone.
        """
        if self.library_from is not None and len(x) >= self.library_from:
            return self._by_library(x, slot, mode)
        ops = self.ops
        if mode == LinearMode.DENSE:
            assert self.dense is not None
            return ops.grouped_linear(x, self.dense.parts, bias=self.bias, silu=self.silu)
        if mode == LinearMode.DELTA:
            assert self.dense is not None
            vt, u = self._of_delta()
            h = ops.grouped_linear(x, vt, table=self.delta, slot=slot)
            return ops.grouped_delta_linear(x, self.dense.parts, h, u, slot, bias=self.bias, silu=self.silu)
        assert self.vt is not None
        h = ops.grouped_linear(x, self.vt.parts, table=self.scale, slot=slot)
        return ops.grouped_linear(h, self.u, shared=False, bias=self.bias, silu=self.silu)

    def _of_delta(self) -> tuple[tuple[Factor, ...], tuple[Factor, ...]]:
        """vt and u of the deltas."""
        if self.delta_factors is None:
            return self._leading()
        vt, u = self.delta_factors
        return (vt,), u

    def _leading(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """vt and u of each linear's leading components, views."""
        assert self.vt is not None
        vt = tuple(part[:rank] for part, rank in zip(self.vt.parts, self.delta_rank, strict=True))
        return vt, tuple(part[:, :rank] for part, rank in zip(self.u, self.delta_rank, strict=True))

    def _by_library(self, x: Tensor, slot: Tensor, mode: LinearMode) -> Tensor:
        """As `__call__`, by matrix products of PyTorch: for many tokens, where arithmetic takes the time."""
        y = self._many(x, slot, mode)
        if self.bias is not None:
            y += self.bias
        return self.ops.silu_mul(*y.chunk(2, 1)) if self.silu else y

    def _many(self, x: Tensor, slot: Tensor, mode: LinearMode) -> Tensor:
        """The products for many tokens, without bias and gate."""
        if mode == LinearMode.FACTORED:
            assert self.vt is not None and self.scale is not None
            h = x @ self.vt.whole.T
            self.ops.scale_by_slot(h, self.scale, slot)
            y = x.new_empty(len(x), sum(map(len, self.u)))
            for target, part, whole in self._blocks(y, h, self.u):
                torch.mm(part, whole.T, out=target)
            return y
        assert self.dense is not None
        y = x @ self.dense.whole.T
        if mode == LinearMode.DELTA:
            self._add_delta(y, x, slot)
        return y

    def _add_delta(self, y: Tensor, x: Tensor, slot: Tensor) -> None:
        assert self.delta is not None
        if self.delta_factors is not None:
            # The base's row of the table is zeros.
            vt, u = self._of_delta()
            h = self.ops.grouped_linear(x, vt, table=self.delta, slot=slot)
            y += self.ops.grouped_linear(h, u, shared=False)
            return
        leading_vt, leading_u = self._leading()
        h = x.new_empty(len(x), sum(self.delta_rank))
        for target, part in zip(h.split(self.delta_rank, 1), leading_vt, strict=True):
            torch.mm(x, part.T, out=target)
        self.ops.scale_by_slot(h, self.delta, slot, zero_base=True)
        for target, part, leading in self._blocks(y, h, leading_u):
            target.addmm_(part, leading.T)

    @staticmethod
    def _blocks(y: Tensor, h: Tensor, u: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The columns of y and of h that belong to each u, and u."""
        outputs = y.split([len(part) for part in u], 1)
        yield from zip(outputs, h.split([part.shape[1] for part in u], 1), u, strict=True)
