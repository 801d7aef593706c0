"""How long does one decode step on a GPU take, beside an ideal server of the base model?"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product

import torch
from torch import Tensor

from zweave.checkpoint import ModelConfig
from zweave.engine.gpu.backend import Backend, backend_of
from zweave.kernels import LIBRARY_FROM, REFERENCE_OPS, LinearMode
from zweave.kernels.triton.pdl import dependent_launches, has_dependent_launches
from zweave.model.gpu_model import GpuModel
from zweave.planner import make_plan
from zweave.planner.gpu_cost import DeviceRates, StepCost, StepShape, rates_of

from ...harness.graph_clock import captured_clock
from ...harness.harness import (
    Clock,
    Outcome,
    Provider,
    Run,
    WallClock,
    find,
    measure,
    per_second,
    ratio,
    row_error,
)
from ...harness.options import pace
from ...harness.report import Column, Report, Row
from .decode_step import DecodeStep, filled_cache, library_linear, with_kernels
from .decoders import decoder_config
from .devices import check_device, notes_of
from .predicted import predicted
from .random_weights import RandomWeights

BLOCK_SIZE = 32
# Of a row of logits, relative to its length. Roundings add up over the layers; a wrong expert gives far more.
ERROR_LIMITS = {torch.bfloat16: 0.1, torch.float32: 1e-3}
COLUMNS = (
    Column("provider", "provider"),
    Column("batch", "rows", "d"),
    Column("context", "context", "d"),
    Column("experts", "experts", "d"),
    Column("seconds", "ms a step", ".3f", 1e3),
    Column("tok_s", "tokens/s", ".0f"),
    Column("vs_ideal", "x ideal", ".2f"),
    Column("bytes", "GB", ".3f", 1e-9),
    Column("predicted_seconds", "predicted ms", ".3f", 1e3),
    Column("vs_predicted", "measured / predicted", ".2f"),
    Column("error", "error", ".4f"),
)


def run(args: argparse.Namespace) -> Report:
    if args.predict:
        return predicted(args)
    start = time.perf_counter()
    check_device(args.device)
    backend = backend_of(args.device)
    largest = StepShape(max(args.batch), max(args.context), max(args.experts))
    models = StepModels(decoder_config(args.shapes), largest, getattr(torch, args.dtype), backend)
    on_gpu = args.device == "cuda"
    rates = rates_of(torch.cuda.get_device_name() if on_gpu else None)
    launches = [
        kind
        for kind in args.launches
        if kind == "plain" or not on_gpu or has_dependent_launches(torch.cuda.current_device())
    ]
    rows: list[Row] = []
    notes = [
        f"Predictions are those for an {rates.name}, before anything was measured.",
        *notes_of(args.device),
    ]
    for context, batch in product(args.context, args.batch):
        if time.perf_counter() - start > args.stop_after:
            notes.append(f"Left out {batch} rows of {context} tokens: {args.stop_after:g} s are over.")
            continue
        providers = list(models.providers(args.modes, batch, context, args.experts, launches))
        outcomes = measure(providers, pace(args), _device_clock if on_gpu else WallClock)
        ideal = find(outcomes, "ideal")
        rows += [models.row(outcome, ideal, rates) for outcome in outcomes]
    return Report(
        "gpu-step",
        f"One decode step of {args.shapes} in {args.dtype}, random weights",
        COLUMNS,
        [{"model": args.shapes} | row for row in rows],
        sections=("context", "batch"),
        notes=notes,
    )


def _possible(launches: Sequence[str], on_gpu: bool) -> list[str]:
    """Kinds that there are; where there is no GPU all of them, to try the bench."""
    has_dependent = not on_gpu or has_dependent_launches(torch.cuda.current_device())
    return [kind for kind in launches if kind == "plain" or has_dependent]


def _device_clock(calls: Sequence[Run]) -> Clock:
    """The clock of a captured step."""
    return captured_clock(calls[0])


class StepModels:
    """One model of random weights under each choice of kernels.

    largest: the most of everything that a step may have
    backend: whose kernels ours are, and which captures steps as the engine's are
    """

    def __init__(self, config: ModelConfig, largest: StepShape, dtype: torch.dtype, backend: Backend) -> None:
        self.config = config
        self.dtype = dtype
        self._plan = make_plan(config.adapted_shapes(), "gpu", dtype.itemsize)
        self._capture = backend.capture
        ops, device = backend.ops, backend.device
        weights = RandomWeights(config, 1 + largest.experts, dtype, device, ops)
        model = GpuModel(weights, config, largest.context, ops)
        num_blocks = largest.rows * -(-largest.context // BLOCK_SIZE)
        model.cache = filled_cache(config, num_blocks, BLOCK_SIZE, dtype, device)
        self.ours = with_kernels(model, ops, LIBRARY_FROM)
        self._ideal = with_kernels(model, replace(ops, linear=library_linear), library_from=1)
        self._reference = with_kernels(model, REFERENCE_OPS, library_from=None)

    def providers(
        self,
        modes: Sequence[str],
        rows: int,
        context: int,
        experts: Sequence[int],
        launches: Sequence[str] = ("plain",),
    ) -> Iterator[Provider]:
        """Of a step of so many sequences; base modes once, the others for each number of experts.

        launches: kinds, "plain" or "dependent"; the ideal knows the first alone.
        """

        @cache
        def truth(mode: LinearMode, shape: StepShape) -> Tensor:
            return DecodeStep(self._reference, mode, shape).logits().double()

        for name in modes:
            mode = mode_of(name)
            counts = {min(count, rows) for count in experts} if mode != LinearMode.DENSE else {0}
            kinds = ("plain",) if name == "ideal" else launches
            for count, kind in product(sorted(counts), kinds):
                shape = StepShape(rows, context, count)
                step = DecodeStep(self._ideal if name == "ideal" else self.ours, mode, shape)
                dependent = dependent_launches(kind == "dependent")
                yield Provider(
                    name if kind == "plain" else f"{name} {kind}",
                    [self._capture(dependent(step))],
                    dependent(partial(_error, step, partial(truth, mode, shape))),
                    ERROR_LIMITS[self.dtype],
                    labels={"batch": rows, "context": context, "experts": count},
                )

    def row(self, outcome: Outcome, ideal: Outcome | None, rates: DeviceRates) -> Row:
        """The outcome with what was predicted."""
        name, labels = outcome.provider.name, outcome.provider.labels
        shape = StepShape(*(int(str(labels[key])) for key in ("batch", "context", "experts")))
        cost = StepCost.of(
            self.config, self._plan, mode_of(name), shape, self.dtype.itemsize, name == "ideal"
        )
        predicted = cost.seconds(rates, dependent=name.endswith("dependent"))
        return outcome.row() | {
            "tok_s": per_second(shape.rows, outcome),
            "vs_ideal": ratio(ideal, outcome),
            "bytes": cost.moved,
            "predicted_seconds": predicted,
            "predicted_for": rates.name,
            "vs_predicted": outcome.seconds and outcome.seconds / predicted,
        }


def mode_of(name: str) -> LinearMode:
    """The mode of a provider's step."""
    return LinearMode.DENSE if name == "ideal" else LinearMode[name.split()[0].upper()]


def _error(step: DecodeStep, truth: Callable[[], Tensor]) -> float:
    return row_error(step.logits(), truth())
