"""The plan of a model's adapted matrices: which weights stay resident, and which way each slot goes."""

from collections.abc import Mapping
from dataclasses import dataclass

from zweave.kernels import Way

# Panels of the CPU kernels are so wide: a component more or less costs nothing within one.
COMPONENT_STEP = 16


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """What a matrix keeps.

    dense: W itself. leading: K, how many leading components a delta may use, 0 for no delta.
    factored: all of U and V, for experts without limits.
    """

    rank: int
    dense: bool = False
    leading: int = 0
    factored: bool = True

    def __post_init__(self) -> None:
        if not self.dense and not self.factored:
            raise ValueError("a matrix must keep W or its factors")
        if self.leading and not (self.dense and 0 < self.leading <= self.rank):
            raise ValueError(f"a delta of {self.leading} components needs W and at most rank {self.rank}")

    def way(self, support: int) -> Way | None:
        """The way of a slot whose z is 1 beyond the first `support` components; None if there is none."""
        if support == 0 and self.dense:
            return Way.DENSE
        if support <= self.leading:
            return Way.DELTA
        return Way.FACTORED if self.factored else None


Plan = Mapping[str, MatrixPlan]


def default_plan(ranks: Mapping[str, int], device_type: str) -> dict[str, MatrixPlan]:
    """All ways open on a CPU, with deltas of an eighth of the components; factored alone elsewhere."""
    if device_type != "cpu":
        return {module: MatrixPlan(rank) for module, rank in ranks.items()}
    return {
        module: MatrixPlan(rank, dense=True, leading=leading_components(rank))
        for module, rank in ranks.items()
    }


def leading_components(rank: int) -> int:
    """An eighth of the components, rounded up to whole panels."""
    return min(rank, -(-rank // 8 // COMPONENT_STEP) * COMPONENT_STEP)
