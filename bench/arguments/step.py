"""How long does one decode step take, with all that belongs to it?

Sequences past a prompt of 64 tokens, one token each: our engine's whole step, scheduling and sampling included,
against transformers' forward with its own cache and an argmax. All contexts grow alike while they are timed.
"""

import argparse

from zweave.options.arguments import positive_whole

from ..harness.options import add_model, add_pace, numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--tokens", type=numbers, default="1,16", metavar="T,...", help="rows of a step (%(default)s)"
    )
    parser.add_argument("--prompt", type=positive_whole, default=64, help="(%(default)s)")
    parser.add_argument("--experts", type=positive_whole, default=8, help="at most (%(default)s)")
    add_pace(parser, rounds=30, seconds=20.0)
