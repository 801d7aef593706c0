"""Time on a GPU: calls in a CUDA graph, the L2 cache flushed before, CUDA events around."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch

from .harness import Clock, Run

Work: TypeAlias = Callable[[], None]
# Of work that is done again by what comes back: at first as it is, then as a graph.
Capture: TypeAlias = Callable[[Work], Work]
# Far above the L2 of any GPU so far (50 MB on an H100, 126 MB on a B200).
FLUSHED_BYTES = 512 << 20
LEAST_CALLS = 8


class EventClock:
    """Seconds of a run on the device, which does the work `count` times."""

    _flushed: torch.Tensor | None = None

    def __init__(self, run: Run, count: int = 1) -> None:
        self._run = run
        self._count = count
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if EventClock._flushed is None:
            EventClock._flushed = torch.empty(FLUSHED_BYTES // 4, dtype=torch.int32, device="cuda")

    def __call__(self) -> float:
        assert EventClock._flushed is not None
        EventClock._flushed.zero_()
        self._start.record()
        self._run()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / self._count


def captured_clock(run: Run, count: int = 1) -> EventClock:
    """The clock of a run that a `Capture` gave, past its warm-up and its capture."""
    for _ in range(2):
        run()
    return EventClock(run, count)


def graph_clock(calls: Sequence[Run], capture: Capture) -> EventClock:
    """Seconds of a call. The graph goes through all copies of the weights, so that its launch and what the last replay
    left in the cache weigh little.
    """
    repeated = [*calls] * -(-LEAST_CALLS // len(calls))

    def run() -> None:
        for call in repeated:
            call()

    return captured_clock(capture(run), len(repeated))


def graph_clocks(capture: Capture) -> Callable[[Sequence[Run]], Clock]:
    """What makes the clocks of a bench.

    capture: `CudaBackend.capture`, as the engine captures its steps: kernels that split their sums need semaphores.
    """
    return partial(graph_clock, capture=capture)


def plain_graph(work: Work) -> Work:
    """A capture for kernels of no semaphores, which asks for nothing that has to be built."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
