"""Rows of several adapters in one batch: the factors that they share are multiplied once."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from ..svf import SvfLinear, svf_rows


def joint_linears(columns: Sequence[Sequence[nn.Module]], x: Tensor, rows: Sequence[int]) -> list[Tensor]:
    """Rows of x through each column of linears: the first `rows[0]` through its first linear, and so on.

    x: [sum(rows), in_features].
    columns: each the linears of one matrix under several adapters.

    A row has the bits that it has alone, and so has its gradient. Neighbours in a column that share their factors are
    one product. All other linears (LoRAs, those that are not adapted) compute their rows each by itself, one after the
    other while the weights are in the processor's caches: torch may round a row in another way when other rows stand
    beside it.
    """
    # A piece is cut once for all columns, so that its gradients are added up in the order in which they are alone.
    cut: dict[tuple[int, ...], Sequence[Tensor]] = {}
    results = []
    for modules in columns:
        shared = [_shared(module, index) for index, module in enumerate(modules)]
        groups = [list(group) for _, group in groupby(range(len(modules)), shared.__getitem__)]
        sizes = tuple(sum(rows[i] for i in group) for group in groups)
        if sizes not in cut:
            cut[sizes] = x.split(sizes) if len(sizes) > 1 else (x,)
        found = [
            _group([modules[i] for i in group], piece, [rows[i] for i in group])
            for group, piece in zip(groups, cut[sizes], strict=True)
        ]
        results.append(torch.cat(found) if len(found) > 1 else found[0])
    return results


def _shared(module: nn.Module, index: int) -> tuple[str, int]:
    """Equal for linears that share their factors."""
    if isinstance(module, SvfLinear) and not module.base:
        return "factors", id(module.factors)
    return "alone", index


def _group(modules: Sequence[nn.Module], x: Tensor, rows: Sequence[int]) -> Tensor:
    linears = [module for module in modules if isinstance(module, SvfLinear)]
    if len(linears) > 1:
        return svf_rows(linears, x, rows)
    result: Tensor = modules[0](x)
    return result
