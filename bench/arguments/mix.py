"""What does it cost to mix experts into a scale row?

All z of a model, E experts, B mixtures at a time.
"""

import argparse

from zweave.options.arguments import positive_whole

from ..harness.options import add_pace, numbers

SMOLLM2_COMPONENTS = 97_920


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experts", type=numbers, default="1,4,16,64", metavar="E,...", help="(%(default)s)")
    parser.add_argument("--mixtures", type=numbers, default="1,16", metavar="B,...", help="(%(default)s)")
    parser.add_argument(
        "--components",
        type=positive_whole,
        default=SMOLLM2_COMPONENTS,
        help="of all matrices together (%(default)s)",
    )
    add_pace(parser, rounds=15, seconds=2.0)
