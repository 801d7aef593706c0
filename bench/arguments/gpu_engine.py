"""How many tokens a second does the GPU engine give, and how long does the host work for a step?

Many requests under no expert, under experts of leading components and under unrestricted ones. While the device
computes a step the host prepares the next: where it waits for none, it is what limits. Beside them, where asked for:
transformers' `generate` without experts, and PEFT's LoRA adapters in one batch, both on the device.
"""

import argparse

from zweave.options.arguments import positive_whole

from ..harness.options import add_model, add_pace, names_of
from .gpu_device import add_device
from .gpu_step import DECODERS

STAND_INS = tuple(name for name in DECODERS if name != "llama3-8b")

PROVIDERS = ("base", "leading", "always", "transformers", "peft")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--random",
        choices=STAND_INS,
        metavar="SHAPES",
        help=f"instead of --model one of random weights, of {' or '.join(STAND_INS)}: needs no network",
    )
    parser.add_argument(
        "--providers",
        type=names_of(PROVIDERS),
        default=",".join(PROVIDERS[:3]),
        metavar="NAME,...",
        help=f"of {', '.join(PROVIDERS)} (%(default)s)",
    )
    for name, value in (("requests", 256), ("experts", 64), ("prompt", 512), ("new", 128)):
        parser.add_argument(f"--{name}", type=positive_whole, default=value, help="(%(default)s)")
    parser.add_argument(
        "--sequences", type=positive_whole, default=128, help="of a step, at most (%(default)s)"
    )
    add_device(parser)
    add_pace(parser, rounds=3, seconds=20.0)
