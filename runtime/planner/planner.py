"""Plans a load: which forms of each matrix stay resident under a limit of memory and of error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch

from ..errors import ZweaveError
from .cost_model import CostModel, cost_model
from .delta_formats import IntegerFormat, meets_error
from .plan import MatrixPlan, Plan, Shapes, memory

# Width of a panel of the CPU kernels: filling one up costs nothing.
COMPONENT_STEP = 16
# Tokens of the step that a plan is made for: so many of the base and of an unrestricted expert.
PLANNED_TOKENS = 16
# A hosted delta may use R / 8 leading components, as experts of support "leading:R/8" do.
HOSTED_DELTA_SHARE = 8
FORMATS: tuple[IntegerFormat, ...] = ("int8", "int4")
# Those of a GPU: one scale a row, which a product applies once, to its sum.
GPU_FORMATS: tuple[IntegerFormat, ...] = ("int8",)

DeviceType: TypeAlias = Literal["cpu", "gpu"]
NOTHING_GIVEN: Plan = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory that a plan may take.

    max_memory: bytes.
    value_bytes: bytes of a weight that is not an integer.
    """

    max_memory: int
    value_bytes: int

    def fits(self, plan: Plan) -> bool:
        return self.needs(plan) <= self.max_memory

    def needs(self, plan: Plan) -> int:
        """Bytes that a plan takes."""
        return memory(plan, self.value_bytes)

    def refusal(self, least: Plan) -> ZweaveError:
        """The error for a budget that the smallest plan exceeds."""
        needed = self.needs(least)
        return ZweaveError(
            f"max_memory allows {self.max_memory / (1 << 20):.1f} MiB for the adapted matrices and the least that "
            f"would do is {math.ceil(needed / (1 << 20) * 10) / 10:.1f}: allow more"
        )


def plan_for(
    shapes: Shapes,
    device_type: DeviceType,
    dtype: torch.dtype,
    max_memory: int | None = None,
    max_error: float = 0.0,
    batch_invariant: bool = False,
    given: Plan = NOTHING_GIVEN,
) -> Plan:
    """The plan of matrices [out_features, in_features], by what products cost on this machine.

    Without a limit of memory nothing depends on costs, and none are measured.
    The other arguments are those of `make_plan`. Raises ZweaveError as `make_plan` and `cost_model` do.
    """
    weighs_costs = device_type == "cpu" and max_memory is not None
    costs = cost_model(dtype) if weighs_costs else None
    return make_plan(
        shapes, device_type, dtype.itemsize, max_memory, max_error, costs, batch_invariant, given
    )


def make_plan(
    shapes: Shapes,
    device_type: DeviceType = "cpu",
    value_bytes: int = 2,
    max_memory: int | None = None,
    max_error: float = 0.0,
    costs: CostModel | None = None,
    batch_invariant: bool = False,
    given: Plan = NOTHING_GIVEN,
) -> dict[str, MatrixPlan]:
    """The plan of a load.

    On a CPU every matrix keeps W for base tokens, and U and V: a few leading components for the deltas of restricted
    experts, all of them for unrestricted ones. With less memory see `_plan_within`, for a GPU `_gpu_plan`.

    shapes: matrix -> (out_features, in_features).
    max_memory: bytes for the weights of adapted matrices, of `value_bytes` a weight; None for no limit.
    max_error: share of a matrix's spectral norm that an expert may lose.
    costs: of the machine, nominal ones by default. Only a choice under `max_memory` depends on them.
    batch_invariant: on a GPU, whether all tokens of all batches take one mode.
    given: the plans of matrices whose weights lie on grids. They are not free to choose; on a GPU, where all of them
        are given, deltas of all components in int8 take the place of U and V where these do not fit.
    Raises ZweaveError, with the least that would do, if no plan fits.
    """
    budget = None if max_memory is None else Budget(max_memory, value_bytes)
    if device_type != "cpu":
        if given:
            return _gpu_given_plan(given, budget, batch_invariant)
        return _gpu_plan(shapes, budget, batch_invariant, max_error)
    plan = {
        module: given.get(module) or MatrixPlan(shape, dense=True, delta_rank=break_even_rank(shape))
        for module, shape in shapes.items()
    }
    if budget is None or (given and budget.fits(plan)):
        return plan
    if given:
        raise budget.refusal(plan)
    return _plan_within(budget, plan, max_error, costs or CostModel.nominal(value_bytes))


def _gpu_plan(
    shapes: Shapes, budget: Budget | None, batch_invariant: bool, max_error: float
) -> dict[str, MatrixPlan]:
    """The same for all matrices, since a step on a GPU has one mode for all of them.

    All forms where they fit: W, U and V, of which the leading components serve deltas. Else, if `max_error` allows it,
    W and all components as integers, so that the base stays dense; else the factors alone; else W and as many leading
    components as fit. With `batch_invariant` the factors alone: base tokens and all experts then take the same products
    whatever is in their batch.
    """
    allowed = [format for format in GPU_FORMATS if meets_error(format, max_error)]
    factored = {module: MatrixPlan(shape) for module, shape in shapes.items()}
    everything = {module: hosted_plan(shape) for module, shape in shapes.items()}
    integers = [
        {module: _full_coverage(shape, format) for module, shape in shapes.items()} for format in allowed
    ]
    for plan in (factored,) if batch_invariant else (everything, *integers, factored):
        if budget is None or budget.fits(plan):
            return plan
    assert budget is not None
    if batch_invariant:
        raise budget.refusal(factored)
    leading = _most_of(shapes, (None, *allowed), budget)
    if not leading:
        least = {module: _leading(shape, 1, None) for module, shape in shapes.items()}
        raise budget.refusal(min(factored, least, key=budget.needs))
    return leading


def _gpu_given_plan(given: Plan, budget: Budget | None, batch_invariant: bool) -> dict[str, MatrixPlan]:
    """The plan as it is given, or with deltas of all components in int8 beside W.

    With `batch_invariant` the latter: base tokens are then the same bits in either mode of a step.
    """
    if any(matrix.factor_grids for matrix in given.values()):
        options = [dict(given)]
    else:
        integers = {
            module: replace(_full_coverage(p.shape, "int8"), grid=p.grid) for module, p in given.items()
        }
        options = [integers] if batch_invariant else [dict(given), integers]
    for plan in options:
        if budget is None or budget.fits(plan):
            return plan
    assert budget is not None
    raise budget.refusal(options[-1])


def hosted_plan(shape: tuple[int, int], dense: bool = True) -> MatrixPlan:
    """The plan of a linear inside another runtime (transformers, vLLM).

    It keeps the factors, and with `dense` also W and a delta of an eighth of the components. Only the rank min(shape)
    matters, so that a shard's plan is that of its matrix.
    """
    return MatrixPlan(shape, dense, max(1, min(shape) // HOSTED_DELTA_SHARE) if dense else 0)


def break_even_rank(shape: tuple[int, int]) -> int:
    """The most components, in whole panels, for which W and a delta cost no more than all factors do.

    Both read and multiply their weights at the same rate, so the smaller number of weights wins:
    M N + K (M + N) < R (M + N).
    """
    M, N = shape
    best = min(M, N) - M * N / (M + N)
    return max(0, int(best) // COMPONENT_STEP * COMPONENT_STEP)


def _plan_within(
    budget: Budget, plan: dict[str, MatrixPlan], max_error: float, costs: CostModel
) -> dict[str, MatrixPlan]:
    """Shrinks a plan to a budget, in this order:

    1. Matrices change to what costs least time for the bytes it saves: the factors alone or, if `max_error` allows it,
       W and all components as integers.
    2. The same with integers whatever `max_error` says, as few of them as will do: no expert is refused for its number
       of components, and what it loses is checked when its rows are written.
    3. All matrices keep W and as many leading components as fit.
    """
    allowed = [format for format in FORMATS if meets_error(format, max_error)]
    for formats in ((None, *allowed), FORMATS):
        plan = _shrink(plan, formats, budget, costs)
        if budget.fits(plan):
            return plan
    return _truncated_plan({module: matrix.shape for module, matrix in plan.items()}, budget, allowed)


def _seconds(matrix: MatrixPlan, costs: CostModel) -> float:
    """Predicted time of base tokens and of those of an unrestricted expert."""
    total = 0.0
    for support in (0, matrix.rank):
        mode = matrix.mode_of(support)
        assert mode is not None
        total += costs.seconds(mode, matrix, PLANNED_TOKENS)
    return total


def _shrink(
    plan: dict[str, MatrixPlan],
    formats: Sequence[IntegerFormat | None],
    budget: Budget,
    costs: CostModel,
) -> dict[str, MatrixPlan]:
    """Changes one matrix after the other, the least time lost for a byte saved first, until the plan fits.

    formats: of the factors that a matrix may change to; None: the factors alone, in plain values.
    """
    plan, total = dict(plan), memory(plan, budget.value_bytes)
    while total > budget.max_memory:
        best: tuple[float, str, MatrixPlan, int] | None = None
        for module, matrix in plan.items():
            for option in (_full_coverage(matrix.shape, format) for format in formats):
                saved = matrix.nbytes(budget.value_bytes) - option.nbytes(budget.value_bytes)
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


def _full_coverage(shape: tuple[int, int], format: IntegerFormat | None) -> MatrixPlan:
    """A small plan that refuses no expert: the factors, or W and all components as integers."""
    if format is None:
        return MatrixPlan(shape)
    return MatrixPlan(shape, dense=True, delta_rank=min(shape), factored=False, format=format)


def _truncated_plan(
    shapes: Shapes, budget: Budget, allowed: Sequence[IntegerFormat]
) -> dict[str, MatrixPlan]:
    """W and the largest share of leading components that fits, the same share for all matrices.

    allowed: formats that may be taken for more components; others are taken if no component fits otherwise.
    """
    for formats in ((None, *allowed), (None, *FORMATS)):
        if plan := _most_of(shapes, formats, budget):
            return plan
    raise budget.refusal({module: _leading(shape, 1, "int4") for module, shape in shapes.items()})


def _most_of(
    shapes: Shapes, formats: Sequence[IntegerFormat | None], budget: Budget
) -> dict[str, MatrixPlan]:
    """The plan of most leading components that fits in one of the formats, or an empty one."""
    plans = (_most_leading(shapes, format, budget) for format in formats)
    return max(plans, key=lambda plan: sum(matrix.delta_rank for matrix in plan.values()))


def _most_leading(shapes: Shapes, format: IntegerFormat | None, budget: Budget) -> dict[str, MatrixPlan]:
    """The plan of most sixteenths of the ranks that fits, or an empty one."""
    best: dict[str, MatrixPlan] = {}
    for sixteenths in range(1, 17):
        plan = {module: _leading(shape, sixteenths, format) for module, shape in shapes.items()}
        if not budget.fits(plan):
            break
        best = plan
    return best


def _leading(shape: tuple[int, int], sixteenths: int, format: IntegerFormat | None) -> MatrixPlan:
    """W and a number of sixteenths of the components, in whole panels."""
    panels = max(1, int(min(shape) * sixteenths / 16) // COMPONENT_STEP)
    kept = min(min(shape), panels * COMPONENT_STEP)
    return MatrixPlan(shape, dense=True, delta_rank=kept, factored=False, format=format)
