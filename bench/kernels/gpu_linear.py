"""The linears on a GPU: how near to the roofs, and to cuBLAS?

Calls run in CUDA graphs with the L2 cache flushed before. Beside our forms: cuBLAS dense, torch.compile of the
formula, and a grouped LoRA in Triton on top of cuBLAS, at rank 16 and 64.
"""

import argparse

import torch

from zweave.errors import ZweaveError

from ..harness.graph_clock import GraphClock
from ..harness.options import add_pace, chosen
from ..harness.report import Report
from ..harness.roofs import cuda_roof_providers
from . import linear
from .gpu_forms import GPU_FORMS, GPU_ONCE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    linear.add_cases(parser, "llama3-8b,smollm2")
    parser.add_argument("--providers", help=f"of {', '.join(GPU_FORMS)} (all of them)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16"], help="(%(default)s)")
    add_pace(parser, rounds=20, seconds=2.0)


def run(args: argparse.Namespace) -> Report:
    if not torch.cuda.is_available():
        raise ZweaveError("no CUDA device is available to this torch: use `zweave bench linear` for the CPU")
    names = chosen(args.providers, GPU_FORMS, "--providers") if args.providers else list(GPU_FORMS)
    return linear.report(
        "gpu-linear",
        args,
        linear.operands_of(args, "cuda"),
        {name: GPU_FORMS[name] for name in names},
        lambda: cuda_roof_providers(torch.bfloat16, torch.device("cuda")),
        GraphClock,
        GPU_ONCE,
    )
