"""How near do the linears come to the machine's roofs, and what does an expert cost?"""

import argparse
from collections.abc import Callable, Container, Mapping, Sequence

import torch

from ..harness.cpu_roofs import roof_providers
from ..harness.harness import Clock, Outcome, Provider, Run, WallClock, find, measure, ratio
from ..harness.options import pace
from ..harness.report import Column, Report, Row
from ..harness.roofs import Roofs, is_roof, roofline_keys
from .integer_forms import INTEGER_FORMS
from .linear_case import Operands
from .linear_forms import FORMS, ONCE, ProviderAt
from .shapes import MODELS, Shape

ALL = FORMS | INTEGER_FORMS
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
COLUMNS = (
    Column("model", "model"),
    Column("shape", "M x N"),
    Column("T", "T", "d"),
    Column("E", "E", "d"),
    Column("provider", "form"),
    Column("seconds", "us", ".1f", 1e6),
    Column("gb_s", "GB/s", ".1f"),
    Column("gflop_s", "GFLOP/s", ".0f"),
    Column("roof", "roof"),
    Column("roof_pct", "% of it", ".0f"),
    Column("net_pct", "less call", ".0f"),
    Column("vs_f_linear", "/ F.linear", ".2f"),
    Column("vs_dense", "/ dense", ".2f"),
    Column("bound", "bound", ".2f"),
    Column("vs_bound", "/ bound", ".2f"),
    Column("vs_e1", "/ E=1", ".3f"),
)


def run(args: argparse.Namespace) -> Report:
    names = args.providers or list(FORMS)
    operands = operands_of(args)
    forms = {name: ALL[name] for name in names}
    return report("linear", args, operands, forms, lambda: roof_providers(DTYPES[args.dtype]))


def operands_of(args: argparse.Namespace, device: str = "cpu") -> list[Operands]:
    """Operands of the shapes that the arguments name; a shape that models share comes once."""
    shapes = _distinct(args.shapes)
    tokens, experts = args.tokens, args.experts
    return [Operands(shape, max(tokens), max(experts), DTYPES[args.dtype], device) for shape in shapes]


def report(
    bench: str,
    args: argparse.Namespace,
    operands: Sequence[Operands],
    forms: Mapping[str, Callable[[Operands], ProviderAt]],
    make_roofs: Callable[[], list[Provider]],
    make_clock: Callable[[Sequence[Run]], Clock] = WallClock,
    once: Container[str] = ONCE,
) -> Report:
    """Measures the shapes one after the other and frees each before the next.

    once: names of the forms whose cost does not depend on the experts.
    """
    tokens, experts = args.tokens, args.experts
    rows: list[Row] = []
    roofs: list[Roofs] = []
    missing: dict[str, str] = {}
    roof_candidates = make_roofs()
    for operand in operands:
        prepared = prepare(operand, forms, missing)
        for T in tokens:
            providers = [*roof_candidates, *_providers(prepared, T, [E for E in experts if E <= T], once)]
            with torch.inference_mode():
                outcomes = measure(providers, pace(args), make_clock)
            roofs.append(Roofs.of(outcomes))
            rows += case_rows(operand.shape, outcomes, roofs[-1])
    return Report(
        bench,
        f"Linears in {args.dtype}: medians of a product, in turn",
        COLUMNS,
        rows,
        sections=("shape", "T"),
        plot="roofline",
        roofs=(max(r.read for r in roofs), max(r.arithmetic for r in roofs)),
        notes=[f"Left out {form}: {reason}" for form, reason in missing.items()],
    )


def _distinct(models: Sequence[str]) -> list[Shape]:
    """The models' shapes; one that several share is measured once."""
    distinct: dict[tuple[int, int], Shape] = {}
    for shape in (shape for model in models for shape in MODELS[model]):
        distinct.setdefault((shape.M, shape.N), shape)
    return list(distinct.values())


@torch.inference_mode()
def prepare(
    operands: Operands, forms: Mapping[str, Callable[[Operands], ProviderAt]], missing: dict[str, str]
) -> dict[str, ProviderAt]:
    """The forms with their weights; those whose kernel this build lacks go to `missing`, with the reason."""
    prepared = {}
    for name, form in forms.items():
        try:
            prepared[name] = form(operands)
        except (ImportError, AttributeError) as error:
            missing[name] = str(error)
    return prepared


def _providers(
    prepared: Mapping[str, ProviderAt], tokens: int, experts: Sequence[int], once: Container[str]
) -> list[Provider]:
    counts = {name: [1] if name in once else experts for name in prepared}
    return [at(tokens, E) for name, at in prepared.items() for E in counts[name]]


def case_rows(shape: Shape, outcomes: Sequence[Outcome], roofs: Roofs) -> list[Row]:
    """JSON rows of the forms at one shape and number of tokens."""
    f_linear, dense = find(outcomes, "F.linear"), find(outcomes, "dense")
    rows: list[Row] = []
    for outcome in outcomes:
        if is_roof(outcome):
            continue
        labels = outcome.provider.labels
        bound = labels.get("bound")
        vs_dense = ratio(outcome, dense)
        single = find(outcomes, outcome.provider.name, E=1) if labels["E"] not in (None, 1) else None
        row: Row = {"model": shape.model, "name": shape.name, "shape": f"{shape.M} x {shape.N}"}
        row |= {"M": shape.M, "N": shape.N, "R": shape.rank} | outcome.row() | roofline_keys(outcome, roofs)
        row |= {
            "read_gb_s": roofs.read / 1e9,
            "peak_gflop_s": roofs.arithmetic / 1e9,
            "call_seconds": roofs.call,
            "vs_f_linear": ratio(outcome, f_linear),
            "vs_dense": vs_dense,
            "vs_bound": vs_dense / bound if vs_dense and isinstance(bound, float) else None,
            "vs_e1": ratio(outcome, single),
            "share": outcome.provider.share,
        }
        rows.append(row)
    return rows
