"""`zweave expert classifier`: trains a classifier of prompts on an early layer's hidden state."""

import argparse
from pathlib import Path

from ...options.arguments import positive_whole, whole
from ...options.engine_options import add_engine_options
from ...options.file_options import add_overwrite_option
from ...options.task_options import add_data_option
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tasks",
        nargs="+",
        metavar="TASK",
        help="one with labels, for instance domains; or several, to tell whose prompt it is",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    add_overwrite_option(parser)
    parser.add_argument(
        "--layers",
        type=positive_whole,
        nargs="+",
        default=[1, 2, 3, 4, 6, 8],
        metavar="N",
        help="to choose from by validation (1 2 3 4 6 8)",
    )
    parser.add_argument("--shots", type=positive_whole, default=500, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--samples", type=positive_whole, default=500, metavar="N", help="held out (%(default)s)"
    )
    parser.add_argument(
        "--other",
        action=argparse.BooleanOptionalAction,
        help="teach it what is of none of the tasks, which the base answers (for several tasks)",
    )
    parser.add_argument(
        "--unseen",
        nargs="+",
        default=[],
        metavar="TASK",
        help="tasks that are not trained on: how many of their held-out prompts are of none",
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the shots (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_data_option(parser)
    add_engine_options(parser)
    parser.set_defaults(run=Deferred("expert_classifier", outputs=("--out",)))
