"""What is an expert worth on another model of the same shapes?

Pair "seeds": two small models are trained from different seeds on the same corpus, an expert is trained on the one and
carried over to the other. Pair "rounded": a model and a copy of it whose matrices were rounded to eight bits a row.
The control has the same values of z in random places. A second table says how alike the models' components are.
"""

import argparse

from zweave.names import DEFAULT_MODEL
from zweave.options.arguments import positive_whole
from zweave.options.task_options import TASK_HELP, add_data_option

from ..harness.options import names_of

PAIRS = ("seeds", "rounded")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pairs", type=names_of(PAIRS), default="seeds", help=f"of {', '.join(PAIRS)} (%(default)s)"
    )
    parser.add_argument(
        "--samples", type=positive_whole, default=500, metavar="N", help="held out (%(default)s)"
    )
    parser.add_argument(
        "--controls", type=positive_whole, default=3, metavar="N", help="shuffled experts (%(default)s)"
    )
    small = parser.add_argument_group("seeds")
    small.add_argument(
        "--pretraining", type=positive_whole, default=1000, metavar="STEPS", help="(%(default)s)"
    )
    small.add_argument("--steps", type=positive_whole, default=150, help="of the experts (%(default)s)")
    rounded = parser.add_argument_group("rounded")
    rounded.add_argument("--model", default=DEFAULT_MODEL, help="pulled name or directory (%(default)s)")
    rounded.add_argument("--expert", default="addition", metavar="NAME|FILE", help="(%(default)s)")
    rounded.add_argument("--task", default="addition", help=f"{TASK_HELP} (%(default)s)")
    rounded.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(%(default)s)")
    add_data_option(rounded)
