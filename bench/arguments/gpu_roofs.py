"""What can this GPU do at most, and what does a launch cost?

The rate at which a kernel reads, cuBLAS at several numbers of tokens, and the time from a kernel of next to no work to
the next in a graph, launched the usual way and as a dependent one (PDL).
"""

import argparse

from ..harness.options import add_pace, numbers
from .gpu_device import add_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens", type=numbers, default="64,512,2048,8192", metavar="T,...", help="(%(default)s)"
    )
    add_device(parser)
    add_pace(parser, rounds=20, seconds=1.0)
