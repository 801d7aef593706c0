"""The tensors of a model on a GPU: plain, and those of one input stacked."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from zweave.kernels import DeviceOps, Stack, StackedLinear

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.module_name import module_name
from ..decomposition.decomposition import Decomposition
from ..experts.bank import Bank
from ..planner.plan import Plan


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
        tables, ranks = self._bank.tables, tuple(plan.delta_rank for plan in plans)
        vt, u = [], []
        for module, plan in zip(modules, plans, strict=True):
            of_u, _, of_vt = self._decomposition.factors(module)
            kept = plan.rank if keeps_factors else plan.delta_rank
            vt.append(of_vt[:kept].to(self.device, self.dtype))
            u.append(of_u[:, :kept].to(self.device, self.dtype).contiguous())
        dense = [self.tensor(f"{module}.weight") for module in modules] if keeps_dense else []
        return StackedLinear(
            ops=self._ops,
            dense=Stack.of(dense) if dense else None,
            vt=Stack.of(vt),
            u=tuple(u),
            scale=tables.stacked_columns(modules) if keeps_factors else None,
            delta_rank=ranks,
            delta=tables.stacked_delta_columns(modules) if all(ranks) else None,
            bias=self._bias(modules, [len(part) for part in u]),
            silu=silu,
            library_from=self._library_from,
        )

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
