"""The plan of matrices whose W stays on the grid that it came on: experts are integers beside it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from zweave.kernels import GridKind

from .plan import MatrixPlan

Grids: TypeAlias = Mapping[str, GridKind]
NO_GRIDS: Grids = MappingProxyType({})
# Share of the components whose factors are int8: those of restricted experts, which change more.
_LEADING_SHARE = 8
_PANEL = 16


def grid_plan(shape: tuple[int, int], grid: GridKind) -> MatrixPlan:
    """W on its grid, and U and V of all components: an eighth of them, in whole panels, in int8, the rest in int4."""
    rank = min(shape)
    leading = -(-rank // (_LEADING_SHARE * _PANEL)) * _PANEL
    if leading >= rank:
        return MatrixPlan(shape, dense=True, delta_rank=rank, factored=False, format="int8", grid=grid)
    return MatrixPlan(
        shape,
        dense=True,
        delta_rank=rank,
        factored=False,
        format="int4",
        grid=grid,
        int8_leading=leading,
    )
