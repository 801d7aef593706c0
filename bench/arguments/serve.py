"""What does HTTP cost, and how long do clients wait?

A server of its own process on loopback, and clients that stream: in a closed loop of 1, 8, 16 and 64 at a time, in turn
with the same requests by `engine.generate`, and in an open one at a rate; under many experts, while others come and go,
and under none while many are loaded, beside a server that has none.
"""

import argparse

from zweave.options.arguments import positive_number, positive_whole

from ..harness.options import add_model, add_pace, numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    for name, value, what in (
        ("prompt", 64, "tokens of a prompt"),
        ("new", 64, "tokens of an answer"),
        ("requests", 64, "most requests of a row: four a client, at least one"),
    ):
        parser.add_argument(f"--{name}", type=positive_whole, default=value, help=f"{what} (%(default)s)")
    parser.add_argument("--clients", type=numbers, default="1,8,16,64", metavar="N,...", help="(%(default)s)")
    parser.add_argument(
        "--experts", type=numbers, default="1,8,64,10000", metavar="E,...", help="round robin (%(default)s)"
    )
    parser.add_argument(
        "--rate",
        type=positive_number,
        metavar="R",
        help="requests a second of the open loop (.8 of what 8 clients got)",
    )
    add_pace(parser, rounds=2)
