"""How long does one decode step take, with all that belongs to it?

Sequences past a prompt of 64 tokens, one token each: our engine's whole step, scheduling and sampling included,
against transformers' forward with its own cache and an argmax. All contexts grow alike while they are timed.
"""

import argparse
from collections.abc import Sequence

from zweave.checkpoint.pull import DEFAULT_MODEL
from zweave.options.arguments import positive_whole

from ..harness.harness import Outcome, Provider, find, measure, ratio
from ..harness.options import add_pace, numbers, pace
from ..harness.report import Column, Report, Row
from .fixtures import Stage
from .peers.peer_providers import TransformersSteps
from .reference_model import REGRET_LIMITS
from .served import DecodeSteps
from .workload import Workload

# Steps that the judge looks at before the timed ones.
JUDGED = 8
COLUMNS = (
    Column("tokens", "rows", "d"),
    Column("provider", "provider"),
    Column("experts", "experts", "d"),
    Column("seconds", "ms a step", ".2f", 1e3),
    Column("tok_s", "tokens/s", ".1f"),
    Column("vs_transformers", "x transformers", ".2f"),
    Column("error", "regret", ".4f"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="pulled name or directory (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(%(default)s)")
    parser.add_argument("--tokens", default="1,16", metavar="T,...", help="rows of a step (%(default)s)")
    parser.add_argument("--prompt", type=positive_whole, default=64, help="(%(default)s)")
    parser.add_argument("--experts", type=positive_whole, default=8, help="at most (%(default)s)")
    add_pace(parser, rounds=30, seconds=20.0)


def run(args: argparse.Namespace) -> Report:
    stage = Stage(args.model, args.dtype)
    rows: list[Row] = []
    for tokens in numbers(args.tokens, "--tokens"):
        workload = Workload(tokens, args.prompt, 1)
        outcomes = measure(_providers(stage, workload, min(args.experts, tokens)), pace(args))
        transformers = find(outcomes, "transformers")
        rows += [_row(outcome, tokens, transformers) for outcome in outcomes]
    return Report(
        "step",
        f"One decode step in {args.dtype} after prompts of {args.prompt} tokens",
        COLUMNS,
        rows,
        sections=("tokens",),
    )


def _providers(stage: Stage, workload: Workload, experts: int) -> list[Provider]:
    prompts = workload.prompts(stage.config)
    providers = []
    # An engine steps all that it holds, so each batch has one of its own.
    for name, count in (("zweave base", 0), ("zweave", experts)):
        served = stage.served(workload, "always", count, stage.new_engine())
        providers.append(_provider(name, stage, prompts, DecodeSteps(served), count))
    peer = TransformersSteps(stage.transformers, prompts)
    return [*providers, _provider("transformers", stage, prompts, peer, 0)]


def _provider(
    name: str,
    stage: Stage,
    prompts: Sequence[Sequence[int]],
    steps: DecodeSteps | TransformersSteps,
    experts: int,
) -> Provider:
    def error() -> float:
        for _ in range(JUDGED):
            steps.step()
        return stage.regret(prompts, steps.answers(), experts=experts)

    return Provider(name, [steps.step], error, REGRET_LIMITS[stage.torch_dtype], labels={"experts": experts})


def _row(outcome: Outcome, tokens: int, transformers: Outcome | None) -> Row:
    return outcome.row() | {
        "tokens": tokens,
        "tok_s": tokens / outcome.seconds if outcome.seconds else None,
        "vs_transformers": ratio(transformers, outcome) if transformers else None,
    }
