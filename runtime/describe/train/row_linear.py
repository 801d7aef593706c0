"""Linears whose rows stand each under an expert of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zweave.kernels.train.svf_linear_train import svf_linear_train

from ...checkpoint.module_name import replace_module
from ...train.svf import Factors, SvfLinear, adapt


@dataclass(slots=True)
class RowExperts:
    """The experts of a pass, and which row stands under which.

    z: [experts, R] float32 of each adapted matrix; none for a pass of the base model.
    slot: [rows] int32, the expert of each row.
    wanted: [wanted rows] int32: the last layer computes only these to the end.
    """

    z: Mapping[str, Tensor] = field(default_factory=dict)
    slot: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32))
    wanted: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32))

    def slots_of(self, rows: int) -> Tensor:
        return self.slot if rows == len(self.slot) else self.wanted


class RowLinear(nn.Module):
    """Semantics: y[t] = U ((sigma * z[slot[t]]) * (Vt x[t])) + b, or W x + b without experts.

    svf: the linear with its packed factors.
    experts: that the pass sets, shared by all linears.
    """

    def __init__(self, name: str, svf: SvfLinear, experts: RowExperts) -> None:
        super().__init__()
        self._name, self._experts = name, experts
        self.svf = svf

    def forward(self, x: Tensor) -> Tensor:
        z = self._experts.z.get(self._name)
        if z is None:
            return F.linear(x, self.svf.weight, self.svf.bias)
        slot = self._experts.slots_of(len(x))
        return svf_linear_train(x, self.svf.factors, self.svf.sigma * z, slot, self.svf.bias)


def adapt_rows(model: nn.Module, factors: Factors, first_layer: int = 0) -> tuple[RowExperts, dict[str, int]]:
    """Replaces linears of a transformers model; the experts that a pass sets, and R of each matrix.

    first_layer: linears of the layers below it stay as they are.
    """
    experts = RowExperts()
    linears = adapt(model, factors, first_layer)
    for name, svf in linears.items():
        svf.requires_grad_(False)
        replace_module(model, name, RowLinear(name, svf, experts))
    return experts, {name: len(svf.sigma) for name, svf in linears.items()}
