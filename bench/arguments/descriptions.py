"""What does it cost to describe an expert in place of naming it?

How long a new description takes to become an expert that is served; how much later the first token of a request comes
under a new description than under a loaded one; and a batch of requests under one description, under as many different
ones that are known, and under as many new ones.
"""

import argparse

from zweave.options.arguments import positive_whole
from zweave.options.file_options import add_generator_option

from ..harness.options import add_model, add_pace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_generator_option(parser)
    for name, value in (("requests", 64), ("prompt", 64), ("new", 16)):
        parser.add_argument(f"--{name}", type=positive_whole, default=value, help="(%(default)s)")
    add_pace(parser, rounds=9)
