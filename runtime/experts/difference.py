"""How two experts differ."""

import math
from dataclasses import dataclass

import torch

from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError
from .expert import Expert


@dataclass(frozen=True, slots=True)
class Difference:
    """How two experts differ in one matrix, or in all.

    module: the matrix, or "total".
    distance: ||z_a - z_b||.
    largest: max |z_a - z_b|.
    cosine: of z_a - 1 and z_b - 1; None if one of them is zero.
    """

    module: str
    distance: float
    largest: float
    cosine: float | None


def differences(a: Expert, b: Expert) -> list[Difference]:
    """One entry for each matrix that either expert adapts, in layer order, and the total last.

    z is 1 where an expert does not adapt a matrix. Raises ZweaveError if the ranks of a matrix differ.
    """
    modules = sorted({**a.z, **b.z}, key=lambda module: (layer_of(module), module))
    pairs = [_deviations(a, b, module) for module in modules]
    entries = [_entry(module, *pair) for module, pair in zip(modules, pairs, strict=True)]
    total = _entry("total", torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]))
    return [*entries, total]


def _deviations(a: Expert, b: Expert, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    rank = (a.z if module in a.z else b.z)[module].numel()
    ones = torch.ones(rank)
    first, second = a.z.get(module, ones), b.z.get(module, ones)
    if first.numel() != second.numel():
        raise ZweaveError(
            f"the experts are for different models: {module} has {first.numel()} and {second.numel()} values"
        )
    return first.double() - 1, second.double() - 1


def _entry(module: str, a: torch.Tensor, b: torch.Tensor) -> Difference:
    norms = math.sqrt(float(a.square().sum()) * float(b.square().sum()))
    cosine = float(a @ b) / norms if norms else None
    return Difference(module, float((a - b).norm()), float((a - b).abs().max()), cosine)
