"""Does the cost of a batch depend on how many experts it holds?"""

import argparse
from functools import partial

from ..harness.harness import find, measure, per_second, ratio
from ..harness.options import pace
from ..harness.report import Column, Report
from .fixtures import Answers, Fixtures
from .workload import Workload

COLUMNS = (
    Column("provider", "provider"),
    Column("experts", "experts", "d"),
    Column("seconds", "s", ".3f"),
    Column("tok_s", "new tokens/s", ".1f"),
    Column("vs_one", "time / first", ".3f"),
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
    outcomes = measure(providers, pace(args, warmup=0))
    one = find(outcomes, "zweave", experts=counts[0])
    rows = [
        outcome.row()
        | {
            "tok_s": per_second(workload.new_tokens, outcome),
            "vs_one": ratio(outcome, one),
        }
        for outcome in outcomes
    ]
    title = (
        f"{args.requests} requests, {args.prompt} + {args.new} tokens, {args.dtype}, medians of runs in turn"
    )
    return Report("experts", title, COLUMNS, rows)
