"""Makes the trained LoRA adapters that `zweave bench lora-accuracy` measures, and keeps them in the cache.

Those of sst2, trec and addition, of each rank under each seed, and many of rank 16 on generated tasks: attributes of
the texts of sst2, trec and mpqa (is it longer than 9 words, is a number in it, is it positive), to be told in words
such as red and blue. Each learns from answers. One that is there is skipped, and one that was interrupted goes on.
"""

import argparse

from zweave.options.arguments import positive_whole, whole
from zweave.options.task_options import add_data_option

from ..harness.options import add_model, numbers, whole_numbers

STEPS, GENERATED_STEPS = 40, 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data_option(parser)
    add_set(parser)
    parser.add_argument(
        "--steps", type=positive_whole, default=STEPS, help="of an adapter of the three tasks (%(default)s)"
    )
    parser.add_argument(
        "--generated-steps",
        type=positive_whole,
        default=GENERATED_STEPS,
        help="of one of a generated task (%(default)s)",
    )


def add_set(parser: argparse.ArgumentParser) -> None:
    """Which adapters."""
    parser.add_argument("--ranks", type=numbers, default="8,16,64", metavar="R,...", help="(%(default)s)")
    parser.add_argument("--seeds", type=whole_numbers, default="0,1,2", metavar="S,...", help="(%(default)s)")
    parser.add_argument(
        "--generated", type=whole, default=128, metavar="N", help="on generated tasks (%(default)s)"
    )
