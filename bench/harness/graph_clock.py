"""Time on a GPU: calls in a CUDA graph, the L2 cache flushed before, CUDA events around."""

from collections.abc import Sequence

import torch

from .harness import Run

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


class GraphClock(EventClock):
    """Seconds of a call. The graph goes through all copies of the weights, so that its launch and what the last replay
    left in the cache weigh little.
    """

    def __init__(self, calls: Sequence[Run]) -> None:
        repeated = [*calls] * -(-LEAST_CALLS // len(calls))
        graph = torch.cuda.CUDAGraph()
        # Compiles and tunes before the capture, during which it could not.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            for call in repeated:
                call()
        # What the calls read must live as long as the graph does.
        self._calls = repeated
        super().__init__(graph.replay, len(repeated))
