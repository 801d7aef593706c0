"""Does the cost of a batch depend on how many experts it holds?

16 requests of 64 prompt and 64 new tokens, greedy, under 1 expert and under 16 different ones, in turn. Then under none
beside 10,000 registered experts and beside those few, and the first token of a request under one that has a slot, and
under one that has not.
"""

import argparse

from zweave.options.arguments import positive_whole, whole

from ..harness.options import add_model, add_pace, numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    for name, value in (("requests", 16), ("prompt", 64), ("new", 64)):
        parser.add_argument(f"--{name}", type=positive_whole, default=value, help="(%(default)s)")
    parser.add_argument("--experts", type=numbers, default="1,16", metavar="E,...", help="(%(default)s)")
    parser.add_argument(
        "--registered",
        type=whole,
        default=10_000,
        metavar="N",
        help="experts that idle beside; 0 for none (%(default)s)",
    )
    add_pace(parser, rounds=7)
