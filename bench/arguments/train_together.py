"""What do several trainings gain by sharing their passes?

A step is forward and backward of a batch of prompts for each training, whose last tokens are scored: a pass for each
training, or one for all of them. The gradients of both must be the same bits.
"""

import argparse

from zweave.options.arguments import positive_whole

from ..harness.options import add_model, add_pace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--trainings", type=positive_whole, default=3, help="(%(default)s)")
    parser.add_argument("--batch", type=positive_whole, default=16, help="prompts of each (%(default)s)")
    parser.add_argument("--prompt", type=positive_whole, default=60, help="tokens, about (%(default)s)")
    add_pace(parser, rounds=7, seconds=60.0)
