"""The tensors of a model on a GPU: plain, and those of one input stacked."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from zweave.kernels import DeltaFactors, DeviceOps, Stack, StackedLinear, quantize, together

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.module_name import module_name
from ..decomposition.decomposition import Decomposition
from ..experts.bank import Bank
from ..planner.plan import MatrixPlan, Plan


class DeviceWeights(Protocol):
    """What a model on a GPU is made of."""

    device: torch.device

    def tensor(self, name: str) -> Tensor:
        """A tensor on the device, by its name in a checkpoint."""

    def stacked(self, layer: int, linears: Sequence[str], silu: bool = False) -> StackedLinear:
        """Linears of a layer that have one input."""


class GpuWeights:
    """Reads the tensors of a checkpoint and its decomposition, those that the plan keeps resident.

    library_from: see `StackedLinear`
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        decomposition: Decomposition,
        bank: Bank,
        plan: Plan,
        dtype: torch.dtype,
        device: torch.device,
        ops: DeviceOps,
        library_from: int | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._decomposition = decomposition
        self._bank = bank
        self._plan = plan
        self._ops = ops
        self._library_from = library_from
        self._present = frozenset(checkpoint.names())
        self.dtype = dtype
        self.device = device

    def tensor(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name).to(self.device, self.dtype, copy=True)

    def stacked(self, layer: int, linears: Sequence[str], silu: bool = False) -> StackedLinear:
        """Linears of a layer that have one input; the plan is the same for each of them."""
        modules = [module_name(layer, linear) for linear in linears]
        plans = [self._plan[module] for module in modules]
        (keeps_dense,), (keeps_factors,) = {p.dense for p in plans}, {p.factored for p in plans}
        tables, pool = self._bank.tables, self._bank.components
        u, vt = zip(*(self._factors(module, self._plan[module]) for module in modules), strict=True)
        dense = [self.tensor(f"{module}.weight") for module in modules] if keeps_dense else []
        stack, leading = None, DeltaFactors(vt, u)
        if keeps_factors:
            stack, u = Stack.of(vt), together(u)
            leading = DeltaFactors.leading(stack.parts, u, [plan.delta_rank for plan in plans])
        return StackedLinear(
            ops=self._ops,
            dense=Stack.of(dense) if dense else None,
            vt=stack,
            u=u if keeps_factors else (),
            scale=tables.stacked_columns(modules) if keeps_factors else None,
            leading=leading,
            delta=tables.stacked_delta_columns(modules),
            bias=self._bias(modules, [plan.shape[0] for plan in plans]),
            silu=silu,
            library_from=self._library_from,
            components=() if pool is None else tuple(map(pool.linear, modules)),
        )

    def _factors(self, module: str, plan: MatrixPlan) -> tuple[Any, Any]:
        """u and vt of the components that a plan keeps, in its format."""
        of_u, _, of_vt = self._decomposition.factors(module)
        u, vt = of_u[:, : plan.kept].to(self.device), of_vt[: plan.kept].to(self.device)
        if plan.format:
            return quantize(u, plan.format), quantize(vt, plan.format)
        return u.to(self.dtype).contiguous(), vt.to(self.dtype)

    def _bias(self, modules: Sequence[str], sizes: Sequence[int]) -> Tensor | None:
        """Biases one after the other, zeros for linears without one; None if none has one."""
        names = [f"{module}.bias" for module in modules]
        if not any(name in self._present for name in names):
            return None
        zeros = (torch.zeros(size, dtype=self.dtype, device=self.device) for size in sizes)
        parts = [
            self.tensor(name) if name in self._present else zero
            for name, zero in zip(names, zeros, strict=True)
        ]
        return torch.cat(parts)
