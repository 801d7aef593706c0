"""How long does one decode step on a GPU take, beside an ideal server of the base model?

A whole step, from the embedding to the sampled token, is one CUDA graph over a model of random weights. "ideal" is the
dense model with q, k and v in one product of cuBLAS, gate and up in another. What a step was predicted to take stands
beside what it takes.
"""

import argparse

from zweave.options.arguments import positive_number, positive_whole

from ..harness.options import add_pace

DECODERS = ("llama3-8b", "smollm2", "tiny")
MODES = ("ideal", "dense", "delta", "factored")


def _numbers(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas, ascending and each once."""
    return sorted({positive_whole(item.strip()) for item in text.split(",")})


def _modes(text: str) -> list[str]:
    """Modes separated by commas."""
    names = [item.strip() for item in text.split(",")]
    if unknown := [name for name in names if name not in MODES]:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}: use {', '.join(MODES)}")
    return list(dict.fromkeys(names))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", default="llama3-8b", choices=DECODERS, help="(%(default)s)")
    parser.add_argument(
        "--modes", type=_modes, default=",".join(MODES), metavar="MODE,...", help="(%(default)s)"
    )
    for name, value, what in (
        ("batch", "1,16,64,128", "sequences in a step"),
        ("context", "512,2048", "tokens of each sequence"),
        ("experts", "1,64", "experts among them"),
    ):
        parser.add_argument(
            f"--{name}", type=_numbers, default=value, metavar="N,...", help=f"{what} (%(default)s)"
        )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(%(default)s)")
    parser.add_argument(
        "--device",
        default="cuda",
        choices=["cuda", "reference"],
        help="reference: PyTorch in the place of kernels, on a CPU, to try the bench (%(default)s)",
    )
    parser.add_argument(
        "--stop-after",
        type=positive_number,
        default=float("inf"),
        metavar="SECONDS",
        help="measure no further sizes of a step after so long, and print those that were (no limit)",
    )
    add_pace(parser, rounds=20, seconds=1.0)
