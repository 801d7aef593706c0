"""Linears of one input as one: q, k and v, or gate and up, in each of the modes of a step on a GPU."""

from dataclasses import dataclass, replace

from torch import Tensor

from .adapted_linear import LinearMode
from .component_pages import ComponentPages
from .device_ops import DeviceOps
from .library_products import add_products, write_products
from .triton.checks import Factor
from .weight_stack import DeltaFactors, GridStack, Stack, plain_parts

# Tokens from which on a product is bound by arithmetic, and a library's is the faster one (predicted).
LIBRARY_FROM = 129


@dataclass(frozen=True, slots=True)
class StackedLinear:
    """The weights of linears of one input, and the columns of the tables that differ by slot.

    ops: the kernels
    dense: W of each, or None
    vt, u: the factors of each, or None: vt [R, N], u [M, R]; on grids all of one format, as W is
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
    dense: Stack | GridStack | None
    vt: Stack | GridStack | None
    u: tuple[Factor, ...]
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
        ops, bias = self.ops, self.bias
        # The products with a gate in their epilogue take plain weights alone.
        fused = self.silu and self._is_plain(mode)
        if mode == LinearMode.FACTORED:
            assert self.vt is not None
            y = ops.grouped_factored_linear(x, self.vt.parts, self.u, self.scale, slot, bias=bias, silu=fused)
        elif mode == LinearMode.DELTA:
            assert self.dense is not None
            vt, u = self.leading.vt, self.leading.u
            y = ops.grouped_delta_linear(x, self.dense.parts, vt, u, self.delta, slot, bias=bias, silu=fused)
        else:
            assert self.dense is not None
            y = ops.grouped_linear(x, self.dense.parts, bias=bias, silu=fused)
        return ops.silu_mul(*y.chunk(2, 1)) if self.silu and not fused else y

    def _is_plain(self, mode: LinearMode) -> bool:
        """Whether all weights of a mode are."""
        if mode == LinearMode.FACTORED:
            return isinstance(self.vt, Stack)
        return isinstance(self.dense, Stack) and (mode == LinearMode.DENSE or self.leading.is_plain)

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
            h = x @ self.vt.values(x.dtype, self.ops).T
            self.ops.scale_by_slot(h, self.scale, slot)
            y = x.new_empty(len(x), sum(u.shape[0] for u in self.u))
            write_products(y, h, plain_parts(self.u, x.dtype, self.ops))
            return y
        assert self.dense is not None
        y = x @ self.dense.values(x.dtype, self.ops).T
        if mode == LinearMode.DELTA:
            self._add_delta(y, x, slot)
        return y

    def _add_delta(self, y: Tensor, x: Tensor, slot: Tensor) -> None:
        vt, u = self.leading.values(x.dtype, self.ops)
        h = x.new_empty(len(x), self.delta.shape[1])
        write_products(h, x, vt, shared=True)
        self.ops.scale_by_slot(h, self.delta, slot, zero_base=True)
        add_products(y, h, u)
