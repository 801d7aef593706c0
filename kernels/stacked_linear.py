"""Linears of one input as one: q, k and v, or gate and up, in each of the modes of a step on a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from .adapted_linear import LinearMode
from .component_pages import ComponentPages
from .device_ops import DeviceOps
from .layout.quantize import Quantized
from .library_products import add_products, empty_together, write_products
from .triton.checks import Factor

PlainFactors: TypeAlias = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]

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
    def of(cls, parts: Sequence[Tensor]) -> "Stack":
        """Copies matrices of equal width into a stack."""
        whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0].contiguous()
        return cls(whole, whole.split([len(part) for part in parts]))


@dataclass(frozen=True, slots=True)
class DeltaFactors:
    """Factors of the components that a delta may use: views of all components, or quantised.

    vt: [K, N] of each linear, or one [sum of K, N]
    u: [M, K] of each linear
    """

    vt: tuple[Factor, ...]
    u: tuple[Factor, ...]

    @classmethod
    def leading(cls, vt: Sequence[Tensor], u: Sequence[Tensor], ranks: Sequence[int]) -> "DeltaFactors":
        """The first components of each linear."""
        return cls(
            tuple(part[:rank] for part, rank in zip(vt, ranks, strict=True)),
            tuple(part[:, :rank] for part, rank in zip(u, ranks, strict=True)),
        )

    @property
    def is_plain(self) -> bool:
        return not any(isinstance(part, Quantized) for part in self.vt)

    def values(self, dtype: torch.dtype) -> "PlainFactors":
        """The factors as plain matrices: quantised ones are read and written once."""
        return _plain(self.vt, dtype), _plain(self.u, dtype)


def _plain(parts: tuple[Factor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    plain = [part for part in parts if isinstance(part, Tensor)]
    if len(plain) == len(parts):
        return tuple(plain)
    values = empty_together([torch.Size(part.shape) for part in parts], dtype, parts[0].device)
    for part, out in zip(parts, values, strict=True):
        assert isinstance(part, Quantized)
        torch.mul(part.data, part.scale, out=out)
    return values


@dataclass(frozen=True, slots=True)
class StackedLinear:
    """The weights of linears of one input, and the columns of the tables that differ by slot.

    ops: the kernels
    dense: W of each, or None
    vt, u: the factors of each, or None: vt [R, N], u [M, R]
    scale: [S, sum of R] float32, sigma * z, or None
    leading: the factors of the deltas; without W of no components, and not used
    delta: [S, sum of K] float32, sigma * (z - 1) of their components
    bias: [sum of M], or None
    silu: the result is silu(y of the first) * (y of the second)
    library_from: tokens from which on the products are PyTorch's, whose order of sums depends on the number of tokens;
        None for never
    components: that slots bring along, of each; empty if the engine keeps none
    """

    ops: DeviceOps
    dense: Stack | None
    vt: Stack | None
    u: tuple[Tensor, ...]
    scale: Tensor | None
    leading: DeltaFactors
    delta: Tensor
    bias: Tensor | None
    silu: bool = False
    library_from: int | None = None
    components: tuple[ComponentPages, ...] = ()

    def __call__(self, x: Tensor, slot: Tensor, mode: LinearMode, pages: Tensor | None = None) -> Tensor:
        """y [T, sum of M], or half as much with `silu`, of x [T, N] and slot [T] int32.

        mode: of all tokens. DENSE leaves slots out, DELTA is for slots that adapt leading components alone.
        pages: of the components that slots bring along, as `add_components` takes them; None if no slot has any
        """
        if pages is None:
            return self._products(x, slot, mode)
        y = replace(self, silu=False)._products(x, slot, mode)
        self.ops.add_components(y, x, self.components, slot, pages)
        return self.ops.silu_mul(*y.chunk(2, 1)) if self.silu else y

    def _products(self, x: Tensor, slot: Tensor, mode: LinearMode) -> Tensor:
        """As `__call__`, without components that slots bring along."""
        if self.library_from is not None and len(x) >= self.library_from:
            return self._by_library(x, slot, mode)
        ops = self.ops
        if mode == LinearMode.DENSE:
            assert self.dense is not None
            return ops.grouped_linear(x, self.dense.parts, bias=self.bias, silu=self.silu)
        if mode == LinearMode.DELTA:
            return self._with_delta(x, slot)
        assert self.vt is not None
        return ops.grouped_factored_linear(
            x, self.vt.parts, self.u, self.scale, slot, bias=self.bias, silu=self.silu
        )

    def _with_delta(self, x: Tensor, slot: Tensor) -> Tensor:
        """As `__call__`, in delta mode."""
        assert self.dense is not None
        vt, u = self.leading.vt, self.leading.u
        # The product with a gate in its epilogue has no quantised form.
        fused = self.silu and self.leading.is_plain
        y = self.ops.grouped_delta_linear(
            x, self.dense.parts, vt, u, self.delta, slot, bias=self.bias, silu=fused
        )
        return self.ops.silu_mul(*y.chunk(2, 1)) if self.silu and not fused else y

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
            write_products(y, h, self.u)
            return y
        assert self.dense is not None
        y = x @ self.dense.whole.T
        if mode == LinearMode.DELTA:
            self._add_delta(y, x, slot)
        return y

    def _add_delta(self, y: Tensor, x: Tensor, slot: Tensor) -> None:
        vt, u = self.leading.values(x.dtype)
        h = x.new_empty(len(x), self.delta.shape[1])
        write_products(h, x, vt, shared=True)
        self.ops.scale_by_slot(h, self.delta, slot, zero_base=True)
        add_products(y, h, u)
