"""The singular values of all matrices side by side, so that a slot's rows are few operations on long vectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..planner.plan import Plan

Array: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class FlatLayout:
    """Where the matrices lie in a row of all singular values [sum of R].

    starts: [matrices], the first column of each.
    position: [sum of R] int32, 1 for the first component of a matrix, 2 for the next.
    tolerance: [sum of R], the change of a component up to which it counts as unchanged.
    leading: [sum of K], the columns that deltas keep.
    """

    starts: Indices
    position: npt.NDArray[np.int32]
    tolerance: Array
    leading: Indices

    @classmethod
    def of(cls, sigma: Array, columns: Mapping[str, slice], plan: Plan, max_error: float) -> "FlatLayout":
        """sigma: [sum of R]; columns: of each matrix, in order; max_error: see `SlotTables`."""
        nothing = np.zeros(0, dtype=np.int64)
        spans = list(columns.values())
        kept = [slice(part.start, part.start + plan[module].delta_rank) for module, part in columns.items()]
        largest = [np.full(part.stop - part.start, max_error * sigma[part.start]) for part in spans]
        return cls(
            starts=np.array([part.start for part in spans], dtype=np.int64),
            position=np.concatenate(
                [nothing, *(np.arange(1, 1 + part.stop - part.start) for part in spans)]
            ).astype(np.int32),
            tolerance=np.concatenate([np.zeros(0), *largest]),
            leading=np.concatenate([nothing, *(np.arange(part.start, part.stop) for part in kept)]),
        )

    def supports(self, change: Array) -> npt.NDArray[np.int32]:
        """[matrices]: the leading components of each that hold all whose change [sum of R] is more than tolerated."""
        if not self.starts.size:
            return np.zeros(0, dtype=np.int32)
        differs = np.abs(change) > self.tolerance
        return np.maximum.reduceat(differs * self.position, self.starts).astype(np.int32)
