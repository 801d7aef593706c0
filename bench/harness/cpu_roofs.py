"""Candidates for the roofs of a CPU: reads, products by torch and by us, and a call of next to no work.

The overhead of an op's call is timed by a product of next to no size: the smallest matrices cannot come nearer to a
roof.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from zweave.kernels import empty_in_huge_pages, greedy, linear, pack

from .harness import Provider
from .machine import cache_bytes
from .roofs import ARITHMETIC, CALL, READ, roof

CHUNK_BYTES = 64 << 20
# M, N, T of products that reach the peak; which of them does differs by processor and dtype.
PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 1024), (1536, 576, 512))


def roof_providers(dtype: torch.dtype, chunk_bytes: int = CHUNK_BYTES) -> list[Provider]:
    """Candidates for the CPU's roofs, to be measured beside the providers."""
    chunks = -(-8 * cache_bytes() // chunk_bytes)
    # In pages of 2 MiB, as packed weights are: reads of small pages are far slower under nested paging.
    buffer = empty_in_huge_pages((max(2, chunks) * chunk_bytes // 4,), torch.float32).fill_(1)
    pieces = buffer.split(chunk_bytes // 4)
    reads: dict[str, Callable[[Tensor], object]] = {
        "sum": lambda piece: piece.view(64, -1).sum(1),
        "amax": lambda piece: piece.view(1024, -1).amax(1),
        "greedy": lambda piece: greedy(piece.view(64, -1)),
    }
    providers = [
        roof(READ, label, [partial(read, piece) for piece in pieces], moved=chunk_bytes)
        for label, read in reads.items()
    ]
    for M, N, T in PRODUCTS:
        x, w = torch.ones(T, N, dtype=dtype), torch.ones(M, N, dtype=dtype)
        flops, size = 2.0 * M * N * T, f"{M} x {N}, {T} tokens"
        providers.append(roof(ARITHMETIC, f"F.linear {size}", [partial(F.linear, x, w)], flops=flops))
        providers.append(roof(ARITHMETIC, f"linear {size}", [partial(linear, x, pack(w))], flops=flops))
    x, w = torch.ones(1, 16, dtype=dtype), torch.ones(16, 16, dtype=dtype)
    # Many in a row, as the small products are timed: the first ones find PyTorch's dispatch code evicted.
    return [*providers, roof(CALL, "linear 16 x 16", [partial(linear, x, pack(w))] * 500)]
