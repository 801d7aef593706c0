"""The linears on a GPU: how near to the roofs, and to cuBLAS?

Calls run in CUDA graphs with the L2 cache flushed before. Beside our forms: cuBLAS dense, torch.compile of the
formula, and a grouped LoRA in Triton on top of cuBLAS, at rank 16 and 64.
"""

import argparse

from ..harness.options import add_pace, names_of
from .linear import add_cases

GPU_FORMS = (
    "F.linear",
    "dense",
    "dense decode",
    "factored",
    "factored decode",
    "delta decode",
    "factored fp8",
    "factored int8",
    "delta",
    "torch.compile",
    "Triton LoRA rank 16",
    "Triton LoRA rank 64",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cases(parser, "llama3-8b,smollm2")
    parser.add_argument(
        "--providers", type=names_of(GPU_FORMS), help=f"of {', '.join(GPU_FORMS)} (all of them)"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16"], help="(%(default)s)")
    add_pace(parser, rounds=20, seconds=2.0)
