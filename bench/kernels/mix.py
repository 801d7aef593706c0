"""What does it cost to mix experts into a scale row?"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor

from zweave.kernels import mix, mix_ref

from ..harness.cpu_roofs import roof_providers
from ..harness.harness import Outcome, Provider, find, measure, ratio, row_error
from ..harness.options import pace
from ..harness.report import Column, Report, Row
from ..harness.roofs import Roofs, is_roof, roofline_keys
from .linear_case import rotated

# Every product is rounded to float32 and added in turn: E roundings at most.
LIMIT = 1e-5
COLUMNS = (
    Column("E", "E", "d"),
    Column("B", "B", "d"),
    Column("provider", "provider"),
    Column("seconds", "us", ".1f", 1e6),
    Column("gb_s", "GB/s", ".1f"),
    Column("roof", "roof"),
    Column("roof_pct", "% of it", ".0f"),
    Column("vs_matmul", "/ matmul", ".2f"),
)


@torch.inference_mode()
def run(args: argparse.Namespace) -> Report:
    roofs = roof_providers(torch.float32)
    rows: list[Row] = []
    best: list[Roofs] = []
    cases = product(args.experts, args.mixtures)
    for E, B in cases:
        outcomes = measure([*roofs, *mix_providers(E, B, args.components)], pace(args))
        roof = Roofs.of(outcomes)
        best.append(roof)
        rows += [_row(outcome, outcomes, roof) for outcome in outcomes if not is_roof(outcome)]
    return Report(
        "mix",
        f"Mixtures of {args.components} components in float32",
        COLUMNS,
        rows,
        sections=("E", "B"),
        plot="roofline",
        roofs=(max(r.read for r in best), max(r.arithmetic for r in best)),
    )


def _row(outcome: Outcome, outcomes: list[Outcome], roofs: Roofs) -> Row:
    row = outcome.row() | roofline_keys(outcome, roofs)
    return row | {"vs_matmul": ratio(outcome, find(outcomes, "matmul"))}


def mix_providers(experts: int, mixtures: int, components: int) -> list[Provider]:
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(experts, components, generator=generator) + 0.5
    alpha = torch.rand(mixtures, experts, generator=generator)
    tables = rotated(table.clone, table.nbytes)

    def loop(table: Tensor, alpha: Tensor) -> Tensor:
        z = torch.zeros(mixtures, components)
        for expert in range(experts):
            z += alpha[:, expert, None] * table[expert]
        return z

    def error(function: Callable[[Tensor, Tensor], Tensor]) -> float:
        return row_error(function(table, alpha), alpha.double() @ table.double())

    return [
        Provider(
            name,
            [partial(function, copy, alpha) for copy in tables],
            error=partial(error, function),
            limit=LIMIT,
            labels={"E": experts, "B": mixtures, "components": components},
            # The scale rows that come out stay in the cache.
            moved=4.0 * experts * (components + mixtures),
            flops=2.0 * mixtures * experts * components,
        )
        for name, function in {"mix": mix, "matmul": mix_ref, "expert by expert": loop}.items()
    ]
