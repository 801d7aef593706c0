"""One linear of a model that vLLM serves on a GPU: stacked weights, and a table row an adapter."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zweave.kernels import LinearMode

from .adapter_tables import AdapterTables
from .device_step import DeviceStep
from .forms import Forms, plan_of
from .stacked_op import stacked_linear
from .stacked_weights import stacked_weights

_BASE = torch.tensor([int(LinearMode.DENSE)], dtype=torch.uint8)


class DeviceLinear:
    """A linear, fused of one or several matrices, all of whose tokens are computed in the mode of the step:

        dense     y = W x + b, if the step has no adapter
        delta     y = W x + U_K (delta[slot] * (Vt_K x)) + b, if its adapters change at most K leading components
        factored  y = U (scale[slot] * (Vt x)) + b

    Each mode takes one launch, whatever the number of matrices. A CUDA graph that was captured
    with adapters is factored, or a delta if the forms are leading ones.

    dense: W [sum of M, N], on the device, in the model's dtype
    factors: u [M, R], sigma [R] and vt [R, N] of each matrix, from top to bottom
    adapters: number of adapters at once
    """

    def __init__(
        self, dense: Tensor, factors: Sequence[tuple[Tensor, Tensor, Tensor]], adapters: int, forms: Forms
    ) -> None:
        plans = [plan_of(len(sigma), forms) for _, sigma, _ in factors]
        sigmas = [sigma.to(dense.device, torch.float32) for _, sigma, _ in factors]
        self.tables = AdapterTables(sigmas, plans, adapters)
        self.weights = stacked_weights(dense, factors, plans, self.tables)
        self._step: DeviceStep | None = None

    def step_of(self, wrapper: Any) -> DeviceStep:
        """A punica wrapper's step, which this linear is then part of."""
        self._step = DeviceStep.of(wrapper)
        self._step.add(self)
        return self._step

    def write(self, adapter: int, z: Sequence[Tensor | None]) -> None:
        """Writes the slot of an adapter index: one z [R] a matrix, None where it adapts nothing."""
        self.tables.write(adapter, z)
        if self._step is not None:
            self._step.adapters_changed()

    def __call__(self, x: Tensor, step: DeviceStep, bias: Tensor | None = None) -> Tensor:
        """y [T, sum of M] of x [T, N]."""
        y: Tensor = stacked_linear(x, step.slot, step.mode, *self.weights, bias)
        return y

    def base(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y of the base model."""
        slot = torch.zeros(len(x), dtype=torch.int32, device=x.device)
        y: Tensor = stacked_linear(x, slot, _BASE, *self.weights, bias)
        return y
