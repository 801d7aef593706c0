"""How many tokens a second does the GPU engine give, and how long does the host work for a step?"""

import argparse
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from zweave.engine import Engine

from ...harness.harness import Outcome, find, measure, per_second, ratio
from ...harness.options import pace
from ...harness.report import Column, Report, Row
from ..engine_server import EngineServer
from ..fixtures import Answers, Fixtures
from ..workload import Workload
from .decoders import decoder_config
from .devices import check_device, notes_of
from .random_checkpoint import random_checkpoint
from .step_times import StepTimes

# Answers that are held against the reference model, which merges weights for each.
CHECKED = 2
KINDS = {"zweave base": None, "zweave leading": "leading", "zweave": "always"}
COLUMNS = (
    Column("provider", "provider"),
    Column("experts", "experts", "d"),
    Column("seconds", "s", ".2f"),
    Column("tok_s", "new tokens/s", ".0f"),
    Column("vs_base", "x base", ".2f"),
    Column("steps", "steps", "d"),
    Column("step_seconds", "ms a decode step", ".3f", 1e3),
    Column("host_seconds", "host ms of it", ".3f", 1e3),
    Column("waiting", "host waits %", ".0f", 100),
    Column("error", "regret", ".4f"),
)


def run(args: argparse.Namespace) -> Report:
    check_device(args.device)
    source = random_checkpoint(decoder_config(args.random)) if args.random else nullcontext(args.model)
    with source as model:
        return _report(args, model)


def _report(args: argparse.Namespace, model: str | Path) -> Report:
    fixtures = Fixtures(str(model), args.dtype)
    workload = Workload(args.requests, args.prompt, args.new)
    # Rounds that repeat their prompts would find them in a prefix cache.
    engine = Engine(
        fixtures.checkpoint.directory,
        dtype=args.dtype,
        device=args.device,
        slots=args.experts,
        max_sequences=args.sequences,
        prefix_cache=False,
    )
    served = {
        name: TimedServer(
            fixtures.engine_server(workload, kind or "always", args.experts if kind else 0, engine)
        )
        for name, kind in KINDS.items()
    }
    prompts = workload.prompts(fixtures.config)[:CHECKED]

    def regret(kind: str | None, answers: Answers) -> float:
        experts = args.experts if kind else 0
        return fixtures.regret(prompts, answers[:CHECKED], kind or "always", experts)

    providers = [
        fixtures.text_provider(
            name,
            served[name],
            partial(regret, kind),
            experts=args.experts if kind else 0,
        )
        for name, kind in KINDS.items()
    ]
    # The check has captured the graphs.
    outcomes = measure(providers, pace(args, warmup=0))
    base = find(outcomes, "zweave base")
    rows = [_row(outcome, base, workload, served[outcome.provider.name]) for outcome in outcomes]
    title = f"{args.requests} requests of {args.prompt} + {args.new} tokens on {args.device}, {args.dtype}"
    return Report("gpu-engine", title, COLUMNS, rows, notes=notes_of(args.device))


@dataclass(slots=True)
class TimedServer:
    """An engine server, and where the time of its last run went."""

    server: EngineServer
    times: dict[str, float | None] = field(default_factory=dict)

    def __call__(self) -> Answers:
        times = StepTimes(self.server.engine)
        answers = times.answers(self.server.requests(self.server.workload.new))
        self.times = times.row()
        return answers


def _row(outcome: Outcome, base: Outcome | None, workload: Workload, server: TimedServer) -> Row:
    return outcome.row() | workload.labels() | {
        "tok_s": per_second(workload.new_tokens, outcome),
        "vs_base": ratio(base, outcome),
    } | (server.times if outcome.seconds else {})  # fmt: skip
