"""What are trained LoRA adapters worth in each way of serving them?

Those that `zweave bench lora-adapters` has made answer test samples of their tasks: without the adapter (base), alone
in PEFT, and in one batch of ours that holds them all: as they are (exact), over one basis of 64, 128 or 256 components
(compressed), and as the experts that come closest to them (projected). A column says which share of the answers is
right, another which is word for word PEFT's.
"""

import argparse

from zweave.options.arguments import positive_whole
from zweave.options.task_options import add_data_option

from ..harness.options import add_model, names_of
from .lora_adapters import add_set

WAYS = ("base", "peft", "exact", "compressed-64", "compressed-128", "compressed-256", "projected")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data_option(parser)
    add_set(parser)
    parser.add_argument(
        "--ways", type=names_of(WAYS), default=",".join(WAYS), help=f"of {', '.join(WAYS)} (all of them)"
    )
    parser.add_argument(
        "--samples",
        type=positive_whole,
        default=200,
        metavar="N",
        help="of each of the three tasks (%(default)s)",
    )
    parser.add_argument(
        "--generated-samples",
        type=positive_whole,
        default=50,
        metavar="N",
        help="of each generated task (%(default)s)",
    )
