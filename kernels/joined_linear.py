"""Linears of one input whose weights are of several formats, which no launch takes together, or whose gate is apart."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .adapted_linear import LinearMode
from .device_ops import DeviceOps
from .stacked_linear import StackedLinear


@dataclass(frozen=True, slots=True)
class JoinedLinear:
    """The results of stacks side by side; called as a `StackedLinear`.

    parts: one or more, of one format each, without silu
    silu: the result is silu(first half) * (second half)
    """

    ops: DeviceOps
    parts: tuple[StackedLinear, ...]
    silu: bool = False

    def __call__(self, x: Tensor, slot: Tensor, mode: LinearMode, pages: Tensor | None = None) -> Tensor:
        results = [part(x, slot, mode, pages) for part in self.parts]
        y = torch.cat(results, 1) if len(results) > 1 else results[0]
        return self.ops.silu_mul(*y.chunk(2, 1)) if self.silu else y
