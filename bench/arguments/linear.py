"""How near do the linears come to the machine's roofs, and what does an expert cost?

Shapes of well-known models, T tokens under E experts. Weights rotate so that they come from memory, the forms run
in turn, and no form gets a time unless its output agrees with float64.
"""

import argparse

from ..harness.options import add_pace, names_of, numbers
from ..kernels.shapes import MODELS

FORMS = ("F.linear", "dense", "merged", "factored", "delta", "LoRA bmm", "recompose")
INTEGER_FORMS = ("delta int8", "delta int4", "full delta int8", "full delta int4")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cases(parser, "smollm2,llama3-8b")
    parser.add_argument(
        "--providers",
        type=names_of(FORMS + INTEGER_FORMS),
        help=f"of {', '.join(FORMS + INTEGER_FORMS)} (the first {len(FORMS)})",
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(%(default)s)")
    add_pace(parser, rounds=15, seconds=1.5)


def add_cases(parser: argparse.ArgumentParser, shapes: str) -> None:
    """Shapes, numbers of tokens and numbers of experts."""
    parser.add_argument(
        "--shapes",
        type=names_of(MODELS),
        default=shapes,
        help=f"of {', '.join(MODELS)}; separated by commas (%(default)s)",
    )
    parser.add_argument(
        "--tokens", type=numbers, default="1,4,16,64,512", metavar="T,...", help="(%(default)s)"
    )
    parser.add_argument("--experts", type=numbers, default="1,16,64", metavar="E,...", help="(%(default)s)")
