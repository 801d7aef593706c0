"""Makes the plan of a load: which forms of each matrix stay resident under a limit of memory and of error."""

import math
from collections.abc import Mapping, Sequence

import torch

from ..errors import ZweaveError
from .cost_model import CostModel, cost_model
from .delta_formats import IntegerFormat, within
from .plan import MatrixPlan, Plan, memory

# Panels of the CPU kernels are so wide: a component more or less costs nothing within one.
COMPONENT_STEP = 16
# Tokens of the step that a plan is made for: the base's and as many of an expert without limits.
PLANNED_TOKENS = 16
FORMATS: tuple[IntegerFormat, ...] = ("int8", "int4")


def plan_for(
    shapes: Mapping[str, tuple[int, int]],
    device_type: str,
    dtype: torch.dtype,
    max_memory: int | None = None,
    max_error: float = 0.0,
) -> Plan:
    """The plan of matrices [out_features, in_features], by what products cost on this machine.

    Without a limit of memory nothing depends on costs, and none are measured.
    The other arguments are those of `make_plan`. Raises ZweaveError as `make_plan` and `cost_model` do.
    """
    weighs_costs = device_type == "cpu" and max_memory is not None
    costs = cost_model(dtype) if weighs_costs else None
    return make_plan(shapes, device_type, dtype.itemsize, max_memory, max_error, costs)


def make_plan(
    shapes: Mapping[str, tuple[int, int]],
    device_type: str = "cpu",
    value_bytes: int = 2,
    max_memory: int | None = None,
    max_error: float = 0.0,
    costs: CostModel | None = None,
) -> dict[str, MatrixPlan]:
    """The plan of a load.

    All modes are open where memory allows: W for the base, W and leading components for experts of few, the
    factors for all others. Where it does not, matrices change to what costs least time for the bytes it saves:
    the factors alone, or, if `max_error` allows it, W and all components as integers. Without `max_error`
    integers are taken where experts without limits would find no room otherwise, and fewest of them.
    Where that is too large as well, all matrices keep W and as many leading components as fit. Elsewhere than
    on a CPU everything is factored.

    max_memory: bytes for the weights of adapted matrices, of `value_bytes` a weight.
    max_error: share of a matrix's spectral norm that an expert may lose.
    costs: of the machine, see cost_model; nominal ones by default. Only a choice under `max_memory` depends on them.
    Raises ZweaveError, with the least that would do, if not even W and one panel of int4 components fit.
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
    costs = costs or CostModel.nominal(value_bytes)
    allowed = [format for format in FORMATS if within(format, max_error)]
    plan = _shrink(plan, [None, *allowed], max_memory, value_bytes, costs)
    # What an expert loses by them is checked when it is bound.
    if memory(plan, value_bytes) > max_memory:
        plan = _shrink(plan, FORMATS, max_memory, value_bytes, costs)
    if memory(plan, value_bytes) <= max_memory:
        return plan
    return _only_leading(shapes, value_bytes, max_memory, allowed)


def worthwhile_components(shape: tuple[int, int]) -> int:
    """The most components, in whole panels, for which W and a delta cost no more than all factors do.

    Both read and multiply weights in the same way, so the smaller number of weights wins:
    M N + K (M + N) < R (M + N).
    """
    M, N = shape
    best = min(M, N) - M * N / (M + N)
    return max(0, int(best) // COMPONENT_STEP * COMPONENT_STEP)


def _seconds(matrix: MatrixPlan, costs: CostModel) -> float:
    """Predicted time of the base's tokens and of those of an expert without limits."""
    total = 0.0
    for support in (0, matrix.rank):
        mode = matrix.mode_of(support)
        assert mode is not None
        total += costs.seconds(mode, matrix.shape, PLANNED_TOKENS, matrix.leading, matrix.format)
    return total


def _shrink(
    plan: dict[str, MatrixPlan],
    formats: Sequence[IntegerFormat | None],
    max_memory: int,
    value_bytes: int,
    costs: CostModel,
) -> dict[str, MatrixPlan]:
    """Changes one matrix after the other, the least time lost for a byte saved first, until the plan fits.

    formats: of the factors that matrices may keep; None: the factors alone, in plain values.
    """
    plan, total = dict(plan), memory(plan, value_bytes)
    while total > max_memory:
        best: tuple[float, str, MatrixPlan, int] | None = None
        for module, matrix in plan.items():
            for option in (_serving_all(matrix.shape, format) for format in formats):
                saved = matrix.nbytes(value_bytes) - option.nbytes(value_bytes)
                if saved <= 0:
                    continue
                lost = (_seconds(option, costs) - _seconds(matrix, costs)) / saved
                if best is None or lost < best[0]:
                    best = (lost, module, option, saved)
        if best is None:
            return plan
        plan[best[1]] = best[2]
        total -= best[3]
    return plan


def _serving_all(shape: tuple[int, int], format: IntegerFormat | None) -> MatrixPlan:
    """A small plan that refuses no expert."""
    if format is None:
        return MatrixPlan(shape)
    return MatrixPlan(shape, dense=True, leading=min(shape), factored=False, format=format)


def _only_leading(
    shapes: Mapping[str, tuple[int, int]],
    value_bytes: int,
    max_memory: int,
    allowed: Sequence[IntegerFormat],
) -> dict[str, MatrixPlan]:
    """W and the largest share of leading components, the same for all matrices, that fits.

    allowed: formats that may be taken for more components; others are taken where no component fits otherwise.
    """
    found = [_most_leading(shapes, format, value_bytes, max_memory) for format in (None, *FORMATS)]
    within_error = [
        plan for format, plan in zip((None, *FORMATS), found, strict=True) if format in (None, *allowed)
    ]
    for candidates in (within_error, found):
        fitting = [plan for plan in candidates if plan]
        if fitting:
            return max(fitting, key=lambda plan: sum(matrix.leading for matrix in plan.values()))
    least = {module: _leading(shape, 1, "int4") for module, shape in shapes.items()}
    raise _too_little(max_memory, memory(least, value_bytes))


def _most_leading(
    shapes: Mapping[str, tuple[int, int]], format: IntegerFormat | None, value_bytes: int, max_memory: int
) -> dict[str, MatrixPlan]:
    """The plan of most sixteenths of the ranks that fits, or an empty one."""
    best: dict[str, MatrixPlan] = {}
    for sixteenths in range(1, 17):
        plan = {module: _leading(shape, sixteenths, format) for module, shape in shapes.items()}
        if memory(plan, value_bytes) > max_memory:
            break
        best = plan
    return best


def _leading(shape: tuple[int, int], sixteenths: int, format: IntegerFormat | None) -> MatrixPlan:
    kept = min(min(shape), _panels(min(shape) * sixteenths / 16))
    return MatrixPlan(shape, dense=True, leading=kept, factored=False, format=format)


def _panels(components: float) -> int:
    return max(1, int(components) // COMPONENT_STEP) * COMPONENT_STEP


def _too_little(allowed: int, needed: int) -> ZweaveError:
    return ZweaveError(
        f"max_memory allows {allowed / (1 << 20):.1f} MiB for the adapted matrices and the least that would do "
        f"is {math.ceil(needed / (1 << 20) * 10) / 10:.1f}: allow more"
    )
