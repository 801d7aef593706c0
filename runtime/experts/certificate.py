"""A bound on what an expert loses where only its leading components are kept."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..planner.delta_formats import STATED_ERROR, IntegerFormat
from .expert import Expert
from .slot_rows import adapted_scale
from .support import support_of


@dataclass(frozen=True, slots=True)
class Certificate:
    """What one matrix keeps of an expert, and what it loses.

    module: the matrix.
    support: number of leading components that hold all that differ from 1.
    kept: number of leading components that are kept.
    error: spectral norm of what is dropped over that of the matrix: max |sigma (z - 1)| / sigma_1 over the dropped
        components, which is exact as U and V are orthonormal. z is renormalised if the expert asks for that.
    change: the same maximum over the kept components.
    """

    module: str
    support: int
    kept: int
    error: float
    change: float

    def rounding(self, format: IntegerFormat | None) -> float:
        """Bound on the further loss by integer factors, as a share of the matrix's spectral norm."""
        return STATED_ERROR[format] * self.change if format else 0.0


def certify(expert: Expert, sigmas: Mapping[str, Tensor], kept: Mapping[str, int]) -> list[Certificate]:
    """A certificate for each matrix that the expert adapts.

    sigmas: matrix -> singular values [R].
    kept: matrix -> number of leading components that are kept, 0 for a matrix that is missing.
    Raises ZweaveError as `adapted_scale` does: the expert could not be served.
    """
    found = []
    for module, z in expert.z.items():
        sigma = sigmas[module].double().numpy()
        delta = np.abs(adapted_scale(module, sigma, z, expert.renormalise) - sigma)
        dropped = delta[kept.get(module, 0) :]
        change = delta[: kept.get(module, 0)].max(initial=0.0)
        found.append(
            Certificate(
                module,
                support_of(delta),
                min(kept.get(module, 0), z.numel()),
                float(dropped.max(initial=0.0) / sigma[0]) if sigma[0] else 0.0,
                float(change / sigma[0]) if sigma[0] else 0.0,
            )
        )
    return found
