"""Linears of one input as one: q, k and v, or gate and up, in each of the modes of a step on a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.kernels import DeviceOps, LinearMode


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

    def __call__(self, x: Tensor, slot: Tensor, mode: LinearMode) -> Tensor:
        """y [T, sum of M], or half as much with `silu`, of x [T, N] and slot [T] int32.

        mode: of all tokens. DENSE leaves slots out, DELTA is for slots that adapt leading components alone.
        """
        ops = self.ops
        if mode == LinearMode.DENSE:
            assert self.dense is not None
            return ops.grouped_linear(x, self.dense.parts, bias=self.bias, silu=self.silu)
        if mode == LinearMode.DELTA:
            assert self.dense is not None and self.vt is not None
            kept = zip(self.vt.parts, self.u, self.delta_rank, strict=True)
            vt, u = zip(*((vt[:rank], u[:, :rank]) for vt, u, rank in kept), strict=True)
            h = ops.grouped_linear(x, vt, table=self.delta, slot=slot)
            return ops.grouped_delta_linear(x, self.dense.parts, h, u, slot, bias=self.bias, silu=self.silu)
        assert self.vt is not None
        h = ops.grouped_linear(x, self.vt.parts, table=self.scale, slot=slot)
        return ops.grouped_linear(h, self.u, shared=False, bias=self.bias, silu=self.silu)
