"""The plan of a model's adapted matrices: which weights stay resident, and which ways are open to a slot."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from zweave.errors import ZweaveError
from zweave.kernels import Way

# Panels of the CPU kernels are so wide: a component more or less costs nothing within one.
COMPONENT_STEP = 16


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """What a matrix [out_features, in_features] keeps.

    dense: W itself. leading: K, how many leading components a delta may use, 0 for no delta.
    factored: all of U and V, for experts without limits.
    """

    shape: tuple[int, int]
    dense: bool = False
    leading: int = 0
    factored: bool = True

    def __post_init__(self) -> None:
        if not self.dense and not self.factored:
            raise ValueError("a matrix must keep W or its factors")
        if self.leading and not (self.dense and 0 < self.leading <= self.rank):
            raise ValueError(f"a delta of {self.leading} components needs W and at most rank {self.rank}")

    @property
    def rank(self) -> int:
        return min(self.shape)

    @property
    def values(self) -> int:
        """Weights that it keeps."""
        (M, N), kept = self.shape, self.rank if self.factored else self.leading
        return self.dense * M * N + kept * (M + N)

    def way(self, support: int) -> Way | None:
        """The way of a slot whose z is 1 beyond the first `support` components; None if there is none."""
        if support == 0 and self.dense:
            return Way.DENSE
        if self.leading and support <= self.leading:
            return Way.DELTA
        return Way.FACTORED if self.factored else None


Plan: TypeAlias = Mapping[str, MatrixPlan]


def make_plan(
    shapes: Mapping[str, tuple[int, int]],
    device_type: str = "cpu",
    value_bytes: int = 2,
    max_memory: int | None = None,
) -> dict[str, MatrixPlan]:
    """The plan of a load.

    All ways are open where memory allows: W for the base, W and leading components for experts of few, the
    factors for all others. Where it does not, matrices give up W, those first where W saves the least time
    for its bytes; where the factors alone are too large, all matrices keep W and as many leading components
    as fit. Elsewhere than on a CPU everything is factored.

    max_memory: bytes for the weights of adapted matrices, of `value_bytes` a weight.
    Raises ZweaveError if not even W and one panel of components fit.
    """
    if device_type != "cpu":
        plan = {module: MatrixPlan(shape) for module, shape in shapes.items()}
        if max_memory is not None and memory(plan, value_bytes) > max_memory:
            raise _too_little(max_memory, memory(plan, value_bytes))
        return plan
    plan = {
        module: MatrixPlan(shape, dense=True, leading=worthwhile_components(shape))
        for module, shape in shapes.items()
    }
    if max_memory is None:
        return plan
    for module in sorted(plan, key=lambda module: _gain(shapes[module])):
        if memory(plan, value_bytes) <= max_memory:
            return plan
        plan[module] = MatrixPlan(shapes[module])
    if memory(plan, value_bytes) <= max_memory:
        return plan
    return _only_leading(shapes, value_bytes, max_memory)


def memory(plan: Plan, value_bytes: int) -> int:
    """Bytes of the weights that a plan keeps."""
    return sum(matrix.values for matrix in plan.values()) * value_bytes


def worthwhile_components(shape: tuple[int, int]) -> int:
    """The most components, in whole panels, for which W and a delta cost no more than all factors do.

    Both read and multiply weights in the same way, so the smaller number of weights wins:
    M N + K (M + N) < R (M + N).
    """
    M, N = shape
    best = min(M, N) - M * N / (M + N)
    return max(0, int(best) // COMPONENT_STEP * COMPONENT_STEP)


def _gain(shape: tuple[int, int]) -> float:
    """What W saves a token of the base: weights of the factors over those of W."""
    M, N = shape
    return min(M, N) * (M + N) / (M * N)


def _only_leading(
    shapes: Mapping[str, tuple[int, int]], value_bytes: int, max_memory: int
) -> dict[str, MatrixPlan]:
    """W and the largest share of leading components, the same for all matrices, that fit."""
    dense = {module: MatrixPlan(shape, dense=True, factored=False) for module, shape in shapes.items()}
    best = None
    for sixteenths in range(1, 17):
        plan = {
            module: replace(matrix, leading=min(matrix.rank, _panels(matrix.rank * sixteenths / 16)))
            for module, matrix in dense.items()
        }
        if memory(plan, value_bytes) > max_memory:
            break
        best = plan
    if best is None:
        raise _too_little(max_memory, memory(dense, value_bytes))
    return best


def _panels(components: float) -> int:
    return max(1, int(components) // COMPONENT_STEP) * COMPONENT_STEP


def _too_little(allowed: int, needed: int) -> ZweaveError:
    return ZweaveError(
        f"max_memory allows {allowed / (1 << 20):.1f} MiB for the adapted matrices and they need more than "
        f"{needed / (1 << 20):.1f}: allow more"
    )
