"""Rows of several adapters in one batch: what their linears share is multiplied once."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from ..svf import SvfLinear, svf_rows
from .packed_linear import lora_rows, packed_base


def joint_linear(modules: Sequence[nn.Module], x: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of x through linears of the same matrix: the first `rows[0]` through the first, and so on.

    x: [sum(rows), in_features]. A row's result has the same bits whatever stands beside it.
    Neighbours that share packed weights are one product; every other linear computes its rows by itself.
    """
    shared = [_shared(module, index) for index, module in enumerate(modules)]
    groups = [list(group) for _, group in groupby(range(len(modules)), shared.__getitem__)]
    pieces = x.split([sum(rows[i] for i in group) for group in groups]) if len(groups) > 1 else [x]
    found = [
        _group([modules[i] for i in group], piece, [rows[i] for i in group])
        for group, piece in zip(groups, pieces, strict=True)
    ]
    return torch.cat(found) if len(found) > 1 else found[0]


def _shared(module: nn.Module, index: int) -> tuple[str, int]:
    """Equal for modules that share packed weights."""
    if isinstance(module, SvfLinear) and not module.base:
        return "factors", id(module.factors)
    if (base := packed_base(module)) is not None:
        return "base", id(base)
    return "alone", index


def _group(modules: Sequence[nn.Module], x: Tensor, rows: Sequence[int]) -> Tensor:
    if len(modules) == 1:
        result: Tensor = modules[0](x)
        return result
    linears = [module for module in modules if isinstance(module, SvfLinear)]
    return svf_rows(linears, x, rows) if linears else lora_rows(modules, x, rows)
