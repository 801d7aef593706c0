"""Does the cost of a batch depend on how many experts it holds?

16 requests of 64 prompt and 64 new tokens, greedy, under 1 expert and under 16 different ones, in turn.
"""

import argparse
from functools import partial

from zweave.checkpoint.pull import DEFAULT_MODEL
from zweave.options.arguments import positive_whole

from ..harness.harness import find, measure, ratio
from ..harness.options import add_pace, numbers, pace
from ..harness.report import Column, Report
from .fixtures import Answers, Stage
from .workload import Workload

COLUMNS = (
    Column("provider", "provider"),
    Column("experts", "experts", "d"),
    Column("seconds", "s", ".3f"),
    Column("tok_s", "new tokens/s", ".1f"),
    Column("vs_one", "time / first", ".3f"),
    Column("error", "regret", ".4f"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="pulled name or directory (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(%(default)s)")
    for name, value in (("requests", 16), ("prompt", 64), ("new", 64)):
        parser.add_argument(f"--{name}", type=positive_whole, default=value, help="(%(default)s)")
    parser.add_argument("--experts", default="1,16", metavar="E,...", help="(%(default)s)")
    add_pace(parser, rounds=7)


def run(args: argparse.Namespace) -> Report:
    stage = Stage(args.model, args.dtype)
    workload = Workload(args.requests, args.prompt, args.new)
    prompts = workload.prompts(stage.config)
    counts = numbers(args.experts, "--experts")

    def regret(count: int, answers: Answers) -> float:
        return stage.regret(prompts, answers, "always", count)

    providers = [
        stage.text_provider(
            "zweave", stage.served(workload, "always", count), partial(regret, count), experts=count
        )
        for count in counts
    ]
    outcomes = measure(providers, pace(args, warmup=0))
    one = find(outcomes, "zweave", experts=counts[0])
    rows = [
        outcome.row()
        | {
            "tok_s": workload.new_tokens / outcome.seconds if outcome.seconds else None,
            "vs_one": ratio(outcome, one),
        }
        for outcome in outcomes
    ]
    title = (
        f"{args.requests} requests, {args.prompt} + {args.new} tokens, {args.dtype}, medians of runs in turn"
    )
    return Report("experts", title, COLUMNS, rows)
