"""How long do the products of a layer take on a GPU, by whom, and what of that is a fixed cost?"""

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from zweave.engine.gpu.backend import Backend, backend_of
from zweave.kernels import LinearMode
from zweave.planner.gpu_cost import DeviceRates, rates_of

from ..harness.device_roofs import device_roof_providers
from ..harness.graph_clock import graph_clocks
from ..harness.harness import (
    ERROR_LIMITS,
    Outcome,
    Provider,
    WallClock,
    check,
    find,
    measure,
    ratio,
    row_error,
)
from ..harness.options import pace
from ..harness.prediction import prediction_keys
from ..harness.report import Column, Report, Row
from ..harness.roofs import Roofs, is_roof, roofline_keys
from ..serving.gpu.decoders import decoder_config
from ..serving.gpu.devices import check_device, notes_of
from .layer_sums import layer_rows
from .stage_forms import Call, StageForm, stage_forms
from .stages import Stage

# Tokens up to which reading binds, and predictions hold.
PREDICTED_TOKENS = 128
# Tokens of a stage that are held against float64.
CHECKED = 64
COLUMNS = (
    Column("T", "T", "d"),
    Column("E", "E", "d"),
    Column("stage", "stage"),
    Column("provider", "form"),
    Column("seconds", "us", ".1f", 1e6),
    Column("gb_s", "GB/s", ".0f"),
    Column("gflop_s", "GFLOP/s", ".0f"),
    Column("roof_pct", "% of the roof", ".0f"),
    Column("vs_cublas", "/ cuBLAS dense", ".2f"),
    Column("fixed_seconds", "fixed us", ".1f", 1e6),
    Column("asymptote_gb_s", "tends to GB/s", ".0f"),
    Column("predicted_seconds", "predicted us", ".1f", 1e6),
    Column("vs_predicted", "measured / predicted", ".2f"),
    Column("error", "error", ".4f"),
)


@torch.inference_mode()
def run(args: argparse.Namespace) -> Report:
    start = time.perf_counter()
    check_device(args.device)
    products = Products(args, backend_of(args.device))
    rows: list[Row] = []
    for tokens, experts in product(args.tokens, args.experts):
        if experts > tokens and experts != min(args.experts):
            continue
        if time.perf_counter() - start > args.stop_after:
            products.leave_out(f"{tokens} tokens", f"{args.stop_after:g} s are over")
            continue
        of_stages = [
            row for stage in products.stages for row in products.rows(stage, tokens, min(experts, tokens))
        ]
        rows += of_stages + layer_rows(of_stages, len(products.stages))
    return Report(
        "gpu-products",
        f"Products of a layer of {args.shapes} in {args.dtype}",
        COLUMNS,
        [{"model": args.shapes} | row for row in rows],
        sections=("T", "stage"),
        plot="roofline",
        roofs=products.roofs,
        notes=[*products.notes, *notes_of(args.device)],
    )


class Products:
    """The stages with their weights, and what was found of them.

    roofs: the highest so far.
    notes: what was left out.
    """

    def __init__(self, args: argparse.Namespace, backend: Backend) -> None:
        config, self._dtype = decoder_config(args.shapes), getattr(torch, args.dtype)
        slots = 1 + max(args.experts)
        self.stages = [
            Stage.of(name, config, slots, self._dtype, backend.device, backend.ops) for name in args.stages
        ]
        self.roofs: tuple[float, float] | None = None
        self.notes: list[str] = []
        self._args = args
        self._backend = backend
        self._forms = stage_forms(args.splits)
        self._on_gpu = args.device == "cuda"
        self._rates = rates_of(torch.cuda.get_device_name() if self._on_gpu else None)
        self._roof_candidates = [] if args.check else device_roof_providers(args.device, self._dtype)

    def leave_out(self, what: str, reason: str) -> None:
        """Notes it, once."""
        note = f"Left out {what}: {reason}."
        if note not in self.notes:
            self.notes.append(note)

    def rows(self, stage: Stage, tokens: int, experts: int) -> list[Row]:
        """JSON rows of the forms of a stage."""
        providers = list(self._providers(stage, tokens, experts))
        if self._args.check:
            return [check(provider).row() for provider in providers]
        clocks = graph_clocks(self._backend.capture) if self._on_gpu else WallClock
        outcomes = measure([*self._roof_candidates, *providers], pace(self._args), clocks)
        roofs = Roofs.of(outcomes)
        read, arithmetic = self.roofs or (0.0, 0.0)
        self.roofs = max(read, roofs.read), max(arithmetic, roofs.arithmetic)
        dense = find(outcomes, "cuBLAS dense")
        return [self._row(outcome, roofs, dense) for outcome in outcomes if not is_roof(outcome)]

    def _providers(self, stage: Stage, tokens: int, experts: int) -> Iterator[Provider]:
        generator = torch.Generator(self._backend.device).manual_seed(tokens)
        size = (tokens, stage.inputs)
        x = torch.randn(size, dtype=self._dtype, device=self._backend.device, generator=generator)
        slot = 1 + torch.arange(tokens, dtype=torch.int32, device=x.device) % experts
        some = torch.cat([torch.arange(min(tokens, CHECKED // 2)), torch.arange(tokens)[-CHECKED // 2 :]])
        some = some.unique().to(x.device)
        for mode in map(_mode, self._args.modes):
            truth = stage.truth(x[some], slot[some], mode)
            cost = stage.cost(mode, tokens, experts)
            for form in self._forms:
                if form.most_tokens is not None and tokens > form.most_tokens:
                    continue
                try:
                    calls = form.calls(stage, mode)
                except NotImplementedError as error:
                    self.leave_out(form.name, str(error))
                    continue
                yield Provider(
                    f"{form.name} {mode.name.lower()}",
                    [partial(call, x, slot) for call in calls],
                    partial(_error, calls[0], x, slot, some, truth),
                    ERROR_LIMITS[self._dtype],
                    labels={
                        "stage": stage.name,
                        "T": tokens,
                        "E": None if mode == LinearMode.DENSE else experts,
                    },
                    moved=cost.moved,
                    flops=cost.flops,
                )

    def _row(self, outcome: Outcome, roofs: Roofs, dense: Outcome | None) -> Row:
        return (
            outcome.row()
            | roofline_keys(outcome, roofs)
            | {
                "moved": outcome.provider.moved,
                "flops": outcome.provider.flops,
                "read_gb_s": roofs.read / 1e9,
            }
            | {"vs_cublas": ratio(outcome, dense)}
            | prediction_keys(
                outcome, predicted(outcome.provider, self._forms, self._rates), self._rates.name
            )
        )


def _mode(name: str) -> LinearMode:
    return LinearMode[name.upper()]


def _error(call: Call, x: Tensor, slot: Tensor, some: Tensor, truth: Tensor) -> float:
    return row_error(call(x, slot)[some], truth)


def predicted(provider: Provider, forms: Sequence[StageForm], rates: DeviceRates) -> float | None:
    """Seconds that a form was predicted to take: bytes over the rate of reading, a launch, and that U waits."""
    name, _, mode = provider.name.rpartition(" ")
    form = next(form for form in forms if form.name == name)
    tokens = provider.labels["T"]
    assert isinstance(tokens, int)
    if not form.is_predicted or tokens > PREDICTED_TOKENS:
        return None
    launch = rates.dependent_launch if form.dependent else rates.launch
    return provider.moved / rates.read + launch + (0.0 if mode == "dense" else rates.handover)
