"""`zweave eval`: the base, experts and baselines on tasks, with standard errors.

All experts answer as one mixed batch, greedily over the whole vocabulary; LoRA adapters by the same rule, in the
forward pass of training. The baselines are always part of the table: the commonest answer and, where answers are
labels, the base model restricted to the labels, the same calibrated, and logistic regression on its label scores.
"""

import argparse
from typing import get_args

from ...names import Split
from ...options.arguments import positive_whole
from ...options.engine_options import EXPERT_HELP, add_engine_options
from ...options.task_options import TASK_HELP, add_data_option
from ..parser import Deferred
from .eval_describe import add_describe_options
from .eval_dispatch import add_dispatch_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", nargs="+", metavar="TASK", help=TASK_HELP)
    _add_methods(parser)
    parser.add_argument(
        "--samples", type=positive_whole, default=500, metavar="N", help="a task (%(default)s)"
    )
    parser.add_argument("--split", choices=get_args(Split), default="test", help="(%(default)s)")
    parser.add_argument(
        "--seeds", type=positive_whole, default=3, metavar="N", help="of baselines (%(default)s)"
    )
    parser.add_argument(
        "--shots", type=positive_whole, default=256, metavar="N", help="that baselines see (%(default)s)"
    )
    parser.add_argument(
        "--kv-reuse",
        action="store_true",
        help="instead: what each --expert loses where its prompts are left to the base (docs/kv_cache.md)",
    )
    add_dispatch_options(parser)
    add_describe_options(parser)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    add_data_option(parser)
    add_engine_options(parser)
    parser.set_defaults(run=Deferred("eval", ("--dispatch",)))


def _add_methods(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--expert",
        action="append",
        default=[],
        metavar="NAME|NAME=WEIGHT,...",
        help=f"repeatable; {EXPERT_HELP}",
    )
    parser.add_argument(
        "--runs",
        action="append",
        default=[],
        metavar="NAME=FILE,FILE,...",
        help="expert files of one method, trained under different seeds: one row; repeatable",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME=DIR,DIR,...",
        help="the same for LoRA adapters, directories of PEFT (zweave train --adapter lora)",
    )
