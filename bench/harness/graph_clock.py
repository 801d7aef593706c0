"""Time on a GPU: calls in a CUDA graph, the L2 cache flushed before, CUDA events around."""

from collections.abc import Sequence

import torch

from .harness import Run

# Far above the L2 of any GPU so far (50 MB on an H100, 126 MB on a B200).
FLUSHED_BYTES = 512 << 20
LEAST_CALLS = 8


class GraphClock:
    """Seconds of a call. The graph goes through all copies of the weights, so that its launch and what the last replay
    left in the cache weigh little.

    least_calls: of a graph; 1 for a call that is work enough
    """

    _flushed: torch.Tensor | None = None

    def __init__(self, calls: Sequence[Run], least_calls: int = LEAST_CALLS) -> None:
        rounds = -(-least_calls // len(calls))
        self._calls = [*calls] * rounds
        self._graph = torch.cuda.CUDAGraph()
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Compiles and tunes before the capture, during which it could not.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self._graph):
            for call in self._calls:
                call()
        if GraphClock._flushed is None:
            GraphClock._flushed = torch.empty(FLUSHED_BYTES // 4, dtype=torch.int32, device="cuda")

    def __call__(self) -> float:
        assert GraphClock._flushed is not None
        GraphClock._flushed.zero_()
        self._start.record()
        self._graph.replay()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / len(self._calls)
