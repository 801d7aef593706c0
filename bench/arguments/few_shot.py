"""How long does a few-shot search take for a candidate, against rebuilding the weights for each?

A population of mixtures answers a task's shots: on our engine as one mixed batch, and candidate after candidate with
weights rebuilt as the paper's code does it, answered by transformers or by our own forward pass. Every round is a
population of its own. The reference model, transformers in float32, checks the answers and their log-likelihoods first.
"""

import argparse

from zweave.options.arguments import positive_whole
from zweave.options.engine_options import EXPERT_HELP
from zweave.options.task_options import TASK_HELP, add_data_option

from ..harness.options import add_model, add_pace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tasks", nargs="*", default=["subtraction"], metavar="TASK", help=f"{TASK_HELP} (subtraction)"
    )
    add_model(parser)
    parser.add_argument(
        "--experts",
        nargs="+",
        metavar="NAME",
        help=f"{EXPERT_HELP} (those that come with zweave and act always)",
    )
    for name, value, what in (
        ("shots", 16, "samples"),
        ("population", 32, "candidates a generation"),
        ("rebuilt", 2, "candidates that are rebuilt a round"),
    ):
        parser.add_argument(
            f"--{name}", type=positive_whole, default=value, metavar="N", help=f"{what} (%(default)s)"
        )
    add_data_option(parser)
    add_pace(parser, rounds=3)
