"""Zeroed semaphores, where the programs of a launch meet: the last one of a split tile reduces.

A kernel that takes semaphores leaves them at zero again, so nothing has to clear them between launches. Launches on
one stream follow each other and share a buffer. The nodes of a captured graph do so too, but the graph may run beside
anything else: whoever captures one gives it a buffer of its own (`for_graph`). What is captured elsewhere, by code that
knows nothing of semaphores, takes some that nobody else is ever given from a pool made before the capture.

A launch that dies leaves its semaphores as they are, and every later tile would be reduced too early: after an error of
the device call `reset_semaphores`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

POOL_SIZE = 1 << 18
# Splits of a tile meet only where there are fewer tiles than SMs; the tiles of a delta's components have theirs always.
BUFFER_SIZE = 4096

_by_stream: dict[tuple[int, int], Tensor] = {}
_pools: dict[int, Tensor] = {}
_taken: dict[int, int] = {}
_graphs: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
_of_graph: ContextVar[Tensor | None] = ContextVar("semaphores of the graph being captured", default=None)


def new_semaphores(device: torch.device | str) -> Tensor:
    """Int32 zeros enough for any launch, [BUFFER_SIZE]: what a graph's owner keeps as long as the graph."""
    return torch.zeros(BUFFER_SIZE, dtype=torch.int32, device=device)


@contextmanager
def for_graph(buffer: Tensor) -> Iterator[None]:
    """Launches inside take this buffer, on the buffer's device. Enter it around the capture of one graph.

    buffer: from `new_semaphores`; no other graph that may run at the same time has it.
    """
    _graphs[id(buffer)] = buffer
    token = _of_graph.set(buffer)
    try:
        yield
    finally:
        _of_graph.reset(token)


def reset_semaphores() -> None:
    """Zeroes all buffers. For engine start and after an error, while no kernel runs and no graph is captured."""
    for buffer in (*_by_stream.values(), *_pools.values(), *_graphs.values()):
        buffer.zero_()


def zeroed_semaphores(count: int, device: torch.device) -> Tensor:
    """At least `count` int32 zeros on the device, for the kernel launched next on the current stream."""
    buffer = _of_graph.get()
    if buffer is not None and len(buffer) >= count and buffer.device == device:
        return buffer
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    index = torch.cuda.current_device() if device.index is None else device.index
    if torch.cuda.is_current_stream_capturing():
        return _captured(count, index)
    if index not in _pools:
        _pools[index] = _zeros(POOL_SIZE, index)
    key = (index, torch.cuda.current_stream(index).cuda_stream)
    if key not in _by_stream or len(_by_stream[key]) < count:
        _by_stream[key] = _zeros(max(count, BUFFER_SIZE), index)
    return _by_stream[key]


def _captured(count: int, index: int) -> Tensor:
    start = _taken.get(index, 0)
    if index not in _pools or start + count > POOL_SIZE:
        # Right, but one node more in the graph.
        return _zeros(count, index)
    _taken[index] = start + count
    return _pools[index][start : start + count]


def _zeros(count: int, index: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int32, device=f"cuda:{index}")
