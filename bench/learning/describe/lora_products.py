"""Cosines between LoRAs: of their products B A, and of the experts that come closest to them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zweave.adapters.lora import Lora
from zweave.decomposition import Decomposition
from zweave.experts.projection import project_pair
from zweave.io.progress import Report as Progress


def product_cosines(loras: Sequence[Lora], progress: Progress) -> Tensor:
    """[n, n]: cosines of all products B A of two LoRAs as one vector; all of the same rank.

    <B A, D C> = sum((B^T D) * (A C^T)): no product is formed.
    """
    rank, total = loras[0].rank, torch.zeros(len(loras), len(loras), dtype=torch.float64)
    modules = list(loras[0].pairs)
    for done, module in enumerate(modules):
        progress("comparing the products", done, len(modules))
        pairs = [lora.pairs[module] for lora in loras]
        a = torch.cat([pair.a.float() for pair in pairs])
        b = torch.cat([pair.b.T.float() * pair.scaling for pair in pairs])
        products = (a @ a.T) * (b @ b.T)
        total += products.view(len(loras), rank, len(loras), rank).double().sum((1, 3))
    return _cosines(total)


def projected_deltas(loras: Sequence[Lora], decomposition: Decomposition, progress: Progress) -> Tensor:
    """[n, sum of R] float32: sigma (z - 1) of the experts that come closest to the LoRAs."""
    columns = []
    for done, module in enumerate(decomposition.names):
        progress("projecting the LoRAs", done, len(decomposition.names))
        u, sigma, vt = (factor.double() for factor in decomposition.factors(module))
        z = torch.stack([project_pair(lora.pairs[module], (u, sigma, vt))[0] for lora in loras])
        columns.append(((z.double() - 1) * sigma).float())
    return torch.cat(columns, 1)


def delta_cosines(deltas: Tensor) -> Tensor:
    """[n, n] of deltas [n, sum of R]: the cosines of what the experts add to the weights."""
    wide = deltas.double()
    return _cosines(wide @ wide.T)


def _cosines(gram: Tensor) -> Tensor:
    lengths = gram.diagonal().clamp(min=0).sqrt()
    return gram / (lengths[:, None] * lengths)
