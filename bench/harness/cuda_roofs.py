"""Candidates for the roofs of a GPU: kernels that read, and the best of cuBLAS."""

from functools import partial

import torch
from torch.nn import functional as F

from .harness import Provider
from .roofs import ARITHMETIC, READ, roof

READ_BYTES = 1 << 30


def cuda_roof_providers(dtype: torch.dtype) -> list[Provider]:
    """Candidates for the roofs of the current device, to be measured beside the providers.

    A copy is none of them: in a graph it may run on a copy engine, slower than a kernel that reads.
    """
    from .gpu_probes import READ_BY_PROGRAM, sum_triton

    source = torch.ones(READ_BYTES // 4, dtype=torch.float32, device="cuda").view(-1, READ_BY_PROGRAM)
    sums = torch.empty(len(source), device="cuda")
    providers = [
        roof(READ, "Triton sum", [partial(sum_triton, source, sums)], moved=source.nbytes),
        roof(READ, "torch.sum", [partial(torch.sum, source, 1)], moved=source.nbytes),
    ]
    for size in (4096, 8192):
        x = torch.randn(size, size, dtype=dtype, device="cuda")
        calls = [partial(F.linear, x, x)]
        providers.append(roof(ARITHMETIC, f"F.linear {size} cubed", calls, flops=2.0 * size**3))
    return providers
