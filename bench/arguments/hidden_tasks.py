"""Can experts that act after the prompt do tasks that the prompt hides?

The prompt is a text, and nothing says what to do with it. An expert for each task, all trained in one run by
cross-entropy, rows side by side; the base model's keys and values of the prompts are computed once. Experts are written
to the cache. A run that its minutes ended goes on when the same command is given again.
"""

import argparse

from zweave.options.arguments import positive_number, positive_whole, whole
from zweave.options.task_options import add_data_option

from ..harness.options import add_model

TASKS = ["positive-red-blue", "asks-person-red-blue"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data_option(parser)
    parser.add_argument("--listed", action="store_true", help="list all label words in the prompt")
    parser.add_argument(
        "--tasks",
        type=lambda text: text.split(","),
        default=TASKS,
        metavar="TASK,...",
        help="(positive-red-blue,asks-person-red-blue)",
    )
    parser.add_argument("--name", default="experts", help="of the unfinished run's state (%(default)s)")
    parser.add_argument("--lr", type=positive_number, default=5e-3, help="(%(default)s)")
    parser.add_argument("--steps", type=positive_whole, default=90, help="(%(default)s)")
    parser.add_argument("--rows", type=positive_whole, default=16, help="of an expert and step (%(default)s)")
    parser.add_argument(
        "--texts", type=positive_whole, default=800, help="of a source to train on (%(default)s)"
    )
    parser.add_argument("--first-layer", type=whole, default=0, help="that experts change (%(default)s)")
    parser.add_argument("--seed", type=whole, default=0, help="(%(default)s)")
    parser.add_argument(
        "--held-out", type=positive_whole, default=200, help="samples to evaluate on (%(default)s)"
    )
    parser.add_argument(
        "--minutes", type=positive_number, default=600.0, help="of training in this run (%(default)s)"
    )
