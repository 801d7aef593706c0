"""Zeroed semaphores for the split-K reduction: the last program of a tile reduces.

A kernel that takes semaphores leaves them at zero again, so nothing has to clear them between launches. Launches on
one stream follow each other and share a buffer. A captured graph may run beside anything else: what it captures gets
semaphores of its own, which nobody else is ever given, from a pool made before the capture (4 bytes a tile of a
captured GEMM; the pool is never handed back).
"""

import torch
from torch import Tensor

POOL_SIZE = 1 << 18
SMALLEST_BUFFER = 4096

_by_stream: dict[tuple[int, int], Tensor] = {}
_pools: dict[int, Tensor] = {}


def zeroed_semaphores(count: int, device: torch.device) -> Tensor:
    """At least `count` int32 zeros on the device, for the kernel launched next on the current stream."""
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    index = torch.cuda.current_device() if device.index is None else device.index
    if torch.cuda.is_current_stream_capturing():
        return _captured(count, index)
    if index not in _pools:
        _pools[index] = _zeros(POOL_SIZE, index)
    key = (index, torch.cuda.current_stream(index).cuda_stream)
    if key not in _by_stream or len(_by_stream[key]) < count:
        _by_stream[key] = _zeros(max(count, SMALLEST_BUFFER), index)
    return _by_stream[key]


def _captured(count: int, index: int) -> Tensor:
    pool = _pools.get(index)
    if pool is None or len(pool) < count:
        # Right, but one node more in the graph.
        return _zeros(count, index)
    _pools[index] = pool[count:]
    return pool[:count]


def _zeros(count: int, index: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int32, device=f"cuda:{index}")
