"""What does HTTP cost, and how long do clients wait?

A server of its own process on loopback, and clients that stream: in a closed loop of 1, 8 and 64 at a time, and in an
open one at a rate. First the same requests as `engine.generate` answers them, in turn with the server.
"""

import argparse

from zweave.options.arguments import positive_number, positive_whole

from ..harness.options import add_model, add_pace, numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    for name, value, what in (
        ("prompt", 64, "tokens of a prompt"),
        ("new", 64, "tokens of an answer"),
        ("requests", 64, "requests of a row, at least one a client"),
    ):
        parser.add_argument(f"--{name}", type=positive_whole, default=value, help=f"{what} (%(default)s)")
    parser.add_argument("--clients", type=numbers, default="1,8,64", metavar="N,...", help="(%(default)s)")
    parser.add_argument(
        "--experts", type=numbers, default="1,8,64,10000", metavar="E,...", help="round robin (%(default)s)"
    )
    parser.add_argument(
        "--rate",
        type=positive_number,
        metavar="R",
        help="requests a second of the open loop (what 8 clients got)",
    )
    add_pace(parser, rounds=3)
