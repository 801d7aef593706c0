"""The best basis of one matrix for some adapters, by either variant."""

from typing import TypeAlias

import torch

from ...names import CompressionVariant
from .diagonal import Diagonal, fit_diagonal
from .full import Full, fit_full
from .stack import Stack

Basis: TypeAlias = Diagonal | Full


def fit(stack: Stack, variant: CompressionVariant, rank: int, seed: int) -> Basis:
    """A basis of K = rank, or of fewer if the adapters' ranks together are less.

    seed: of the start; the same gives the same basis.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = min(rank, len(stack.owner))
    return (fit_diagonal if variant == "diagonal" else fit_full)(stack, rank, generator)
