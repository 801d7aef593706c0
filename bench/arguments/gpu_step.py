"""How long does one decode step on a GPU take, beside an ideal server of the base model?

A whole step, from the embedding to the sampled token, is one CUDA graph over a model of random weights. "ideal" is the
dense model with q, k and v in one product of cuBLAS, gate and up in another. What a step was predicted to take stands
beside what it takes.
"""

import argparse

from zweave.options.arguments import positive_number

from ..harness.options import add_pace, names_of, numbers
from .gpu_device import add_device

DECODERS = ("llama3-8b", "smollm2", "tiny")
MODES = ("ideal", "dense", "delta", "factored")
LAUNCHES = ("plain", "dependent")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", default="llama3-8b", choices=DECODERS, help="(%(default)s)")
    parser.add_argument(
        "--modes", type=names_of(MODES), default=",".join(MODES), metavar="MODE,...", help="(%(default)s)"
    )
    parser.add_argument(
        "--launches",
        type=names_of(LAUNCHES),
        default=",".join(LAUNCHES),
        metavar="KIND,...",
        help="how our kernels are launched; dependent where the device has it (%(default)s)",
    )
    for name, value, what in (
        ("batch", "1,16,64,128", "sequences in a step"),
        ("context", "512,2048", "tokens of each sequence"),
        ("experts", "1,64", "experts among them"),
    ):
        parser.add_argument(
            f"--{name}", type=numbers, default=value, metavar="N,...", help=f"{what} (%(default)s)"
        )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(%(default)s)")
    add_device(parser)
    parser.add_argument(
        "--predict",
        action="store_true",
        help="measure nothing, and print what an H200 and an H100 are predicted to take, beside the targets",
    )
    parser.add_argument(
        "--stop-after",
        type=positive_number,
        default=float("inf"),
        metavar="SECONDS",
        help="measure no further sizes of a step after so long, and print those that were (no limit)",
    )
    add_pace(parser, rounds=20, seconds=1.0)
