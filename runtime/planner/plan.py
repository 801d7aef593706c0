"""The plan of a model's adapted matrices: which weights stay resident, and which mode a slot uses."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from zweave.kernels import GRID_FORMS, GridKind, LinearMode

from .delta_formats import BYTES, IntegerFormat


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """What a matrix keeps resident.

    shape: (out_features, in_features).
    dense: whether it keeps W.
    delta_rank: number K of leading components that a delta may use, 0 for no delta.
    factored: whether it keeps all of U and V, for unrestricted experts.
    format: of the delta's factors if they are integers; such a delta of all components serves any expert.
    grid: the grid on which W stays, None for plain values.
    int8_leading: number of leading components that are int8, the others being int4.
    factor_grids: the grids on which U and V lie where they are refit and all that is kept, None for plain values.
    """

    shape: tuple[int, int]
    dense: bool = False
    delta_rank: int = 0
    factored: bool = True
    format: IntegerFormat | None = None
    grid: GridKind | None = None
    int8_leading: int = 0
    factor_grids: tuple[GridKind, GridKind] | None = None

    def __post_init__(self) -> None:
        if not self.dense and not self.factored:
            raise ValueError("a matrix must keep W or its factors")
        if self.delta_rank and not (self.dense and 0 < self.delta_rank <= self.rank):
            raise ValueError(f"a delta of {self.delta_rank} components needs W and at most rank {self.rank}")
        if self.format and (self.factored or not self.delta_rank):
            raise ValueError(f"{self.format} factors serve deltas alone")
        if self.grid and not self.dense:
            raise ValueError(f"W on a grid of {self.grid} must be kept")
        if self.int8_leading and not (self.format == "int4" and 0 < self.int8_leading < self.delta_rank):
            raise ValueError(f"{self.int8_leading} components in int8 need further ones in int4")
        if self.factor_grids and (self.dense or not self.factored):
            raise ValueError("factors on grids stand alone")

    @property
    def rank(self) -> int:
        return min(self.shape)

    @property
    def kept(self) -> int:
        """Components of U and V that it keeps."""
        return self.rank if self.factored else self.delta_rank

    def resident(self, value_bytes: int) -> dict[str, int]:
        """Bytes of W, U and V, as far as it keeps them; value_bytes: of a weight that is not an integer."""
        M, N = self.shape
        if self.factor_grids:
            u, vt = (GRID_FORMS[grid].bytes for grid in self.factor_grids)
            return {"W": 0, "U": int(M * self.rank * u), "V": int(self.rank * N * vt)}
        return {
            "W": int(self.dense * M * N * (GRID_FORMS[self.grid].bytes if self.grid else value_bytes)),
            "U": sum(_factor_bytes(M, kept, format, value_bytes) for kept, format in self.factors),
            "V": sum(_factor_bytes(kept, N, format, value_bytes) for kept, format in self.factors),
        }

    @property
    def factors(self) -> list[tuple[int, IntegerFormat | None]]:
        """Numbers of components of U and V that lie together, leading ones first, and their format."""
        if self.int8_leading:
            return [(self.int8_leading, "int8"), (self.kept - self.int8_leading, self.format)]
        return [(self.kept, self.format)]

    def format_of(self, support: int) -> IntegerFormat | None:
        """The lowest precision of the components that an expert of this support uses."""
        return "int8" if support <= self.int8_leading else self.format

    def nbytes(self, value_bytes: int) -> int:
        """Bytes of the weights that it keeps; value_bytes: of a weight that is not an integer."""
        return sum(self.resident(value_bytes).values())

    def read(self, mode: LinearMode, value_bytes: int) -> int:
        """Bytes of the weights that a token reads in a mode."""
        parts = self.resident(value_bytes)
        if mode == LinearMode.DELTA and self.factored:
            parts = replace(self, factored=False).resident(value_bytes)
        dense, factors = parts["W"], parts["U"] + parts["V"]
        return {LinearMode.DENSE: dense, LinearMode.DELTA: dense + factors, LinearMode.FACTORED: factors}[
            mode
        ]

    def mode_of(self, support: int) -> LinearMode | None:
        """The mode of a slot whose z is 1 beyond the first `support` components; None if its expert is refused."""
        if support == 0 and self.dense:
            return LinearMode.DENSE
        if self.delta_rank and support <= self.delta_rank:
            return LinearMode.DELTA
        return LinearMode.FACTORED if self.factored else None


def _factor_bytes(rows: int, columns: int, format: IntegerFormat | None, value_bytes: int) -> int:
    if format is None:
        return rows * columns * value_bytes
    return int(rows * columns * BYTES[format]) + (4 * rows if format == "int8" else 0)


Plan: TypeAlias = Mapping[str, MatrixPlan]
Shapes: TypeAlias = Mapping[str, tuple[int, int]]


def read_bytes(plan: Plan, value_bytes: int, is_base: bool) -> int | None:
    """Bytes that a token of the base reads, or one of an expert without limits; None if that is refused."""
    total = 0
    for matrix in plan.values():
        mode = matrix.mode_of(0 if is_base else matrix.rank)
        if mode is None:
            return None
        total += matrix.read(mode, value_bytes)
    return total


def memory(plan: Plan, value_bytes: int) -> int:
    """Bytes of the weights that a plan keeps; value_bytes: of a weight that is not an integer."""
    return sum(matrix.nbytes(value_bytes) for matrix in plan.values())
