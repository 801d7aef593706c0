"""The plan of a model's adapted matrices: which weights stay resident, and which mode a slot uses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from zweave.kernels import LinearMode

from .delta_formats import BYTES, IntegerFormat


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """What a matrix keeps resident.

    shape: (out_features, in_features).
    dense: whether it keeps W.
    delta_rank: number K of leading components that a delta may use, 0 for no delta.
    factored: whether it keeps all of U and V, for unrestricted experts.
    format: of the delta's factors if they are integers; such a delta of all components serves any expert.
    """

    shape: tuple[int, int]
    dense: bool = False
    delta_rank: int = 0
    factored: bool = True
    format: IntegerFormat | None = None

    def __post_init__(self) -> None:
        if not self.dense and not self.factored:
            raise ValueError("a matrix must keep W or its factors")
        if self.delta_rank and not (self.dense and 0 < self.delta_rank <= self.rank):
            raise ValueError(f"a delta of {self.delta_rank} components needs W and at most rank {self.rank}")
        if self.format and (self.factored or not self.delta_rank):
            raise ValueError(f"{self.format} factors serve deltas alone")

    @property
    def rank(self) -> int:
        return min(self.shape)

    def nbytes(self, value_bytes: int) -> int:
        """Bytes of the weights that it keeps; value_bytes: of a weight that is not an integer."""
        (M, N), kept = self.shape, self.rank if self.factored else self.delta_rank
        dense, factors = self.dense * M * N * value_bytes, kept * (M + N)
        if self.format is None:
            return dense + factors * value_bytes
        scales = 4 * (kept + M) if self.format == "int8" else 0
        return dense + int(factors * BYTES[self.format]) + scales

    def mode_of(self, support: int) -> LinearMode | None:
        """The mode of a slot whose z is 1 beyond the first `support` components; None if its expert is refused."""
        if support == 0 and self.dense:
            return LinearMode.DENSE
        if self.delta_rank and support <= self.delta_rank:
            return LinearMode.DELTA
        return LinearMode.FACTORED if self.factored else None


Plan: TypeAlias = Mapping[str, MatrixPlan]


def memory(plan: Plan, value_bytes: int) -> int:
    """Bytes of the weights that a plan keeps; value_bytes: of a weight that is not an integer."""
    return sum(matrix.nbytes(value_bytes) for matrix in plan.values())
