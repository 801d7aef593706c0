"""Does the cost of a batch depend on how many experts it holds?"""

import argparse
from collections.abc import Mapping
from functools import partial

from ..harness.harness import Outcome, find, measure, per_second, ratio
from ..harness.options import pace
from ..harness.report import Column, Report, Row
from .fixtures import Answers, Fixtures
from .registered import FIRST, IDLE, registered_providers
from .workload import Workload

COLUMNS = (
    Column("provider", "provider"),
    Column("experts", "experts", "d"),
    Column("seconds", "s", ".3f"),
    Column("tok_s", "new tokens/s", ".1f"),
    Column("vs_one", "time / first", ".3f"),
    Column("registered", "registered", "d"),
    Column("state", "its expert is"),
    Column("delay_seconds", "ms later", ".3f", 1e3),
    Column("error", "regret", ".4f"),
)


def run(args: argparse.Namespace) -> Report:
    fixtures = Fixtures(args.model, args.dtype)
    workload = Workload(args.requests, args.prompt, args.new)
    prompts = workload.prompts(fixtures.config)
    counts = args.experts

    def regret(count: int, answers: Answers) -> float:
        return fixtures.regret(prompts, answers, "always", count)

    providers = [
        fixtures.text_provider(
            "zweave", fixtures.engine_server(workload, "always", count), partial(regret, count), experts=count
        )
        for count in counts
    ]
    if args.registered:
        providers += registered_providers(fixtures, workload, args.registered)
    outcomes = measure(providers, pace(args, warmup=0))
    one = find(outcomes, "zweave", experts=counts[0])
    quiet = find(outcomes, IDLE)
    resident = find(outcomes, FIRST, state="resident")
    rows = [
        outcome.row() | _figures(outcome, workload, {"zweave": one, IDLE: quiet}, resident)
        for outcome in outcomes
    ]
    title = (
        f"{args.requests} requests, {args.prompt} + {args.new} tokens, {args.dtype}, medians of runs in turn"
    )
    return Report("experts", title, COLUMNS, rows)


def _figures(
    outcome: Outcome, workload: Workload, first: Mapping[str, Outcome | None], resident: Outcome | None
) -> Row:
    """Of all requests the rate, and the time over that of the first of their kind; of a first token how late it is."""
    name = outcome.provider.name
    if name != FIRST:
        return {
            "tok_s": per_second(workload.new_tokens, outcome),
            "vs_one": ratio(outcome, first[name]),
        }
    if outcome.seconds is None or resident is None or resident.seconds is None:
        return {"delay_seconds": None}
    return {"delay_seconds": outcome.seconds - resident.seconds}
