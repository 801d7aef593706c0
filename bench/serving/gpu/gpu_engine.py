"""How many tokens a second does the GPU engine give, and how long does the host work for a step?"""

import argparse
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from zweave.engine import Engine

from ...harness.harness import Outcome, Provider, find, measure, per_second, ratio
from ...harness.options import pace
from ...harness.report import Column, Report, Row
from ..engine_server import EngineServer
from ..fixtures import Answers, Fixtures
from ..workload import Workload
from .decoders import decoder_config
from .devices import check_device, notes_of
from .gpu_peers import CHECKED, PEERS, TRANSFORMERS
from .random_checkpoint import random_checkpoint
from .step_times import StepTimes

BLOCK_SIZE = 32
NAMES = {"base": "zweave base", "leading": "zweave leading", "always": "zweave"}
COLUMNS = (
    Column("provider", "provider"),
    Column("experts", "experts", "d"),
    Column("seconds", "s", ".2f"),
    Column("tok_s", "new tokens/s", ".0f"),
    Column("vs_base", "x base", ".2f"),
    Column("vs_transformers", "x transformers", ".2f"),
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
        block_size=BLOCK_SIZE,
        max_sequences=args.sequences,
        # What the workload needs, and its blocks round up: the others' models need memory, too.
        kv_tokens=args.sequences * (args.prompt + args.new + BLOCK_SIZE),
        prefix_cache=False,
    )
    prompts = workload.prompts(fixtures.config)
    served: dict[str, TimedServer] = {}
    providers: list[Provider] = []
    notes = notes_of(args.device)
    for kind in args.providers:
        try:
            if kind in PEERS:
                where = "cuda" if args.device == "cuda" else "cpu"
                providers.append(PEERS[kind](fixtures, prompts, workload, args.experts, where))
                continue
        except ImportError as error:
            notes.append(f"Left out {kind}: {error}.")
            continue
        name, experts = NAMES[kind], 0 if kind == "base" else args.experts
        served[name] = TimedServer(fixtures.engine_server(workload, kind, experts, engine))
        regret = partial(_regret, fixtures, prompts, kind, experts)
        providers.append(fixtures.text_provider(name, served[name], regret, experts=experts))
    # The check has captured the graphs.
    outcomes = measure(providers, pace(args, warmup=0))
    base, others = find(outcomes, NAMES["base"]), find(outcomes, TRANSFORMERS)
    rows = [_row(outcome, base, others, workload, served.get(outcome.provider.name)) for outcome in outcomes]
    title = f"{args.requests} requests of {args.prompt} + {args.new} tokens on {args.device}, {args.dtype}"
    return Report("gpu-engine", title, COLUMNS, rows, notes=notes)


def _regret(fixtures: Fixtures, prompts: list[list[int]], kind: str, experts: int, answers: Answers) -> float:
    return fixtures.regret(prompts[:CHECKED], answers[:CHECKED], kind, experts)


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


def _row(
    outcome: Outcome,
    base: Outcome | None,
    others: Outcome | None,
    workload: Workload,
    server: TimedServer | None,
) -> Row:
    times = server.times if server is not None and outcome.seconds else {}
    return outcome.row() | workload.labels() | times | {
        "tok_s": per_second(workload.new_tokens, outcome),
        "vs_base": ratio(base, outcome),
        "vs_transformers": ratio(others, outcome),
    }  # fmt: skip
