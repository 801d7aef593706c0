"""How long do the products of a layer take on a GPU, by whom, and what of that is a fixed cost?

Stages as the engine launches them (q, k and v at once, gate and up with their gate), in each mode, by cuBLAS, by the
Triton kernels without and with dependent launches (PDL), and by the decode kernels in CUDA C++. A line through the
times of the stages over their bytes gives the fixed cost of a stage and the rate that it tends to.
"""

import argparse

from zweave.options.arguments import positive_number

from ..harness.options import add_pace, names_of, numbers
from .gpu_device import add_device
from .gpu_step import DECODERS

STAGES = ("qkv", "o", "gate_up", "down")
MODES = ("dense", "delta", "factored")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", default="llama3-8b", choices=DECODERS, help="(%(default)s)")
    parser.add_argument(
        "--tokens",
        type=numbers,
        default="1,8,16,32,48,64,96,128,256,512,2048,8192",
        metavar="T,...",
        help="(%(default)s)",
    )
    parser.add_argument("--experts", type=numbers, default="64", metavar="E,...", help="(%(default)s)")
    for name, known in (("stages", STAGES), ("modes", MODES)):
        parser.add_argument(
            f"--{name}",
            type=names_of(known),
            default=",".join(known),
            metavar="NAME,...",
            help="(%(default)s)",
        )
    parser.add_argument(
        "--splits",
        type=numbers,
        default=[],
        metavar="N,...",
        help="beside the usual number of splits (split-K) of a product, at most so many (none)",
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(%(default)s)")
    add_device(parser)
    parser.add_argument(
        "--check", action="store_true", help="only hold the outputs against float64, and compile the kernels"
    )
    parser.add_argument(
        "--stop-after",
        type=positive_number,
        default=float("inf"),
        metavar="SECONDS",
        help="measure no further numbers of tokens after so long, and print those that were (no limit)",
    )
    add_pace(parser, rounds=15, seconds=0.3)
