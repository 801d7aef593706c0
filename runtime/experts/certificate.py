"""What an expert loses at most where only its leading components are kept."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..planner.delta_formats import STATED_ERROR, IntegerFormat
from .expert import Expert


@dataclass(frozen=True, slots=True)
class Certificate:
    """Of one matrix: support, how many leading components differ from 1; kept, how many of them stay; error,
    the spectral norm of what is dropped over that of the matrix, exactly max |sigma (z - 1)| / sigma_1 over
    the dropped components, as U and V are orthonormal; change, the same maximum over the kept ones."""

    module: str
    support: int
    kept: int
    error: float
    change: float

    def rounding(self, format: IntegerFormat | None) -> float:
        """What integers cost beside, at most, as a share of the matrix's spectral norm."""
        return STATED_ERROR[format] * self.change if format else 0.0


def certify(expert: Expert, sigmas: Mapping[str, Tensor], kept: Mapping[str, int]) -> list[Certificate]:
    """A certificate for each matrix that the expert adapts.

    kept: components of each matrix that are kept; those of the others are 0.
    """
    found = []
    for module, z in expert.z.items():
        sigma = sigmas[module].double().numpy()
        delta = np.abs(sigma * (z.double().numpy() - 1))
        differs = np.flatnonzero(delta)
        dropped = delta[kept.get(module, 0) :]
        change = delta[: kept.get(module, 0)].max(initial=0.0)
        found.append(
            Certificate(
                module,
                int(differs[-1]) + 1 if differs.size else 0,
                min(kept.get(module, 0), z.numel()),
                float(dropped.max(initial=0.0) / sigma[0]) if sigma[0] else 0.0,
                float(change / sigma[0]) if sigma[0] else 0.0,
            )
        )
    return found
