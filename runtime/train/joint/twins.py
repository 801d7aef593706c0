"""Models that can be adapted each in its own way and have one set of weights."""

from copy import deepcopy

from torch import nn


def twins(model: nn.Module, count: int) -> list[nn.Module]:
    """The model itself and copies of it: containers of their own around the same linears, norms and embeddings."""
    leaves = {id(module): module for module in model.modules() if not list(module.children())}
    return [model, *(deepcopy(model, dict(leaves)) for _ in range(count - 1))]
