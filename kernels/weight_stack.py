"""The matrices of linears of one input: one above the other, on grids, or the factors of their deltas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .device_ops import DeviceOps
from .layout.grid_panels import GridPanels
from .layout.quantize import Quantized
from .library_products import empty_together
from .triton.checks import Factor

PlainFactors: TypeAlias = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


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

    def values(self, dtype: torch.dtype, ops: DeviceOps) -> Tensor:
        """[sum of rows, columns] in the dtype that they have."""
        return self.whole


@dataclass(frozen=True, slots=True)
class GridStack:
    """Matrices of equal width on grids of one format."""

    parts: tuple[GridPanels, ...]

    def values(self, dtype: torch.dtype, ops: DeviceOps) -> Tensor:
        """[sum of rows, columns], worked out by each call."""
        rows = [part.shape[0] for part in self.parts]
        first = self.parts[0]
        whole = torch.empty(sum(rows), first.shape[1], dtype=dtype, device=first.device)
        for part, out in zip(self.parts, whole.split(rows), strict=True):
            ops.grid_values(out, part)
        return whole


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
        return all(isinstance(part, Tensor) for part in self.vt)

    def values(self, dtype: torch.dtype, ops: DeviceOps) -> PlainFactors:
        """The factors as plain matrices: quantised ones are read and written once."""
        return plain_parts(self.vt, dtype, ops), plain_parts(self.u, dtype, ops)


def plain_parts(parts: Sequence[Factor], dtype: torch.dtype, ops: DeviceOps) -> tuple[Tensor, ...]:
    """Matrices as plain ones; those that are not are written to a buffer, integers with one scale a row."""
    plain = [part for part in parts if isinstance(part, Tensor)]
    if len(plain) == len(parts):
        return tuple(plain)
    values = empty_together([torch.Size(part.shape) for part in parts], dtype, parts[0].device)
    for part, out in zip(parts, values, strict=True):
        if isinstance(part, GridPanels):
            ops.grid_values(out, part)
        else:
            assert isinstance(part, Quantized)
            torch.mul(part.data, part.scale, out=out)
    return values
