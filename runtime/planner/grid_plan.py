"""The plans of matrices whose weights lie on grids: W as it came, with experts beside it, or refit factors alone."""

from collections.abc import Mapping
from dataclasses import replace

from zweave.kernels import GridKind

from .plan import MatrixPlan, Plan, Shapes
from .planner import hosted_plan

# Share of the components whose factors are int8: those of restricted experts, which change more.
_LEADING_SHARE = 8
_PANEL = 16


def grids_plan(shapes: Shapes, grids: Mapping[str, GridKind]) -> Plan:
    """The plan of the matrices whose W lies on a grid."""
    return {module: grid_plan(shapes[module], grid) for module, grid in grids.items()}


def gpu_grids_plan(shapes: Shapes, grids: Mapping[str, GridKind]) -> Plan:
    """The plan of a GPU: all forms, W on its grid if it has one."""
    return {module: replace(hosted_plan(shape), grid=grids.get(module)) for module, shape in shapes.items()}


def refit_plan(shapes: Shapes, grids: Mapping[str, tuple[GridKind, GridKind]]) -> Plan:
    """The plan of matrices that keep refit factors alone; grids: of U and of V^T."""
    return {module: MatrixPlan(shape, factor_grids=grids[module]) for module, shape in shapes.items()}


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
