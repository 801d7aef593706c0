"""The linears on a GPU: how near to the roofs, and to cuBLAS?"""

import argparse

import torch

from zweave.engine.gpu.backend import backend_of
from zweave.errors import ZweaveError

from ..harness.cuda_roofs import cuda_roof_providers
from ..harness.graph_clock import graph_clocks
from ..harness.report import Report
from . import linear
from .gpu_forms import GPU_FORMS, GPU_ONCE


def run(args: argparse.Namespace) -> Report:
    if not torch.cuda.is_available():
        raise ZweaveError("no CUDA device is available to this torch: use `zweave bench linear` for the CPU")
    names = args.providers or list(GPU_FORMS)
    return linear.report(
        "gpu-linear",
        args,
        linear.operands_of(args, "cuda"),
        {name: GPU_FORMS[name] for name in names},
        lambda: cuda_roof_providers(torch.bfloat16),
        graph_clocks(backend_of("cuda").capture),
        GPU_ONCE,
    )
