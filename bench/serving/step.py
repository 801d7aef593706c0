"""How long does one decode step take, with all that belongs to it?"""

import argparse
from collections.abc import Sequence

from ..harness.harness import Outcome, Provider, find, measure, per_second, ratio
from ..harness.options import pace
from ..harness.report import Column, Report, Row
from .engine_server import EngineSteps
from .fixtures import Fixtures
from .peers.peer_providers import TransformersSteps
from .reference_model import REGRET_LIMITS
from .workload import Workload

# Steps whose answers are checked, before the timed ones.
CHECKED_STEPS = 8
COLUMNS = (
    Column("tokens", "rows", "d"),
    Column("provider", "provider"),
    Column("experts", "experts", "d"),
    Column("seconds", "ms a step", ".2f", 1e3),
    Column("tok_s", "tokens/s", ".1f"),
    Column("vs_transformers", "x transformers", ".2f"),
    Column("error", "regret", ".4f"),
)


def run(args: argparse.Namespace) -> Report:
    fixtures = Fixtures(args.model, args.dtype)
    rows: list[Row] = []
    for tokens in args.tokens:
        workload = Workload(tokens, args.prompt, 1)
        outcomes = measure(_providers(fixtures, workload, min(args.experts, tokens)), pace(args))
        transformers = find(outcomes, "transformers")
        rows += [_row(outcome, tokens, transformers) for outcome in outcomes]
    return Report(
        "step",
        f"One decode step in {args.dtype} after prompts of {args.prompt} tokens",
        COLUMNS,
        rows,
        sections=("tokens",),
    )


def _providers(fixtures: Fixtures, workload: Workload, experts: int) -> list[Provider]:
    prompts = workload.prompts(fixtures.config)
    providers = []
    # An engine steps all that it holds, so each batch has one of its own.
    for name, count in (("zweave base", 0), ("zweave", experts)):
        server = fixtures.engine_server(workload, "always", count, fixtures.new_engine())
        providers.append(_provider(name, fixtures, prompts, EngineSteps(server), count))
    peer = TransformersSteps(fixtures.transformers, prompts)
    return [*providers, _provider("transformers", fixtures, prompts, peer, 0)]


def _provider(
    name: str,
    fixtures: Fixtures,
    prompts: Sequence[Sequence[int]],
    steps: EngineSteps | TransformersSteps,
    experts: int,
) -> Provider:
    def error() -> float:
        for _ in range(CHECKED_STEPS):
            steps.step()
        return fixtures.regret(prompts, steps.answers(), experts=experts)

    return Provider(
        name, [steps.step], error, REGRET_LIMITS[fixtures.torch_dtype], labels={"experts": experts}
    )


def _row(outcome: Outcome, tokens: int, transformers: Outcome | None) -> Row:
    return outcome.row() | {
        "tokens": tokens,
        "tok_s": per_second(tokens, outcome),
        "vs_transformers": ratio(transformers, outcome),
    }
