"""How near does attention on a GPU come to the roofs?

Of decoding the share of the rate at which the device reads, over rows and contexts; of prompts operations a second.
Pages lie in no order, and no case finds its own in the cache. Beside ours: PyTorch's scaled_dot_product_attention, and
for prompts varlen_attn, over keys and values that lie in one piece.
"""

import argparse

from zweave.options.arguments import positive_number

from ..harness.options import add_pace, names_of, numbers
from .gpu_device import add_device
from .gpu_step import DECODERS

KINDS = ("decode", "prefill")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", default="llama3-8b", choices=DECODERS, help="(%(default)s)")
    parser.add_argument(
        "--kinds", type=names_of(KINDS), default=",".join(KINDS), metavar="KIND,...", help="(%(default)s)"
    )
    for name, value, what in (
        ("batch", "1,16,64,256", "rows of decoding"),
        ("context", "256,1024,4096,16384", "tokens of each"),
        ("prompt", "512,2048,8192", "tokens of a prompt"),
    ):
        parser.add_argument(
            f"--{name}", type=numbers, default=value, metavar="N,...", help=f"{what} (%(default)s)"
        )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(%(default)s)")
    add_device(parser)
    parser.add_argument("--check", action="store_true", help="only hold the outputs against float64")
    parser.add_argument(
        "--stop-after",
        type=positive_number,
        default=float("inf"),
        metavar="SECONDS",
        help="measure no further cases after so long, and print those that were (no limit)",
    )
    add_pace(parser, rounds=15, seconds=0.3)
