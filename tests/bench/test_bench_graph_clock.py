"""What a GPU's clock captures, without a GPU: its events and graphs are stand-ins."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from zweave.bench.harness import graph_clock
from zweave.bench.harness.graph_clock import LEAST_CALLS, graph_clocks
from zweave.engine.gpu.backend import CudaBackend
from zweave.kernels.triton.semaphores import zeroed_semaphores


class Graph:
    """Records that work is captured while it is."""

    def replay(self) -> None:
        ran.append("replay")


ran: list[str] = []


@contextmanager
def capturing(graph: Graph, pool: object, capture_error_mode: str) -> Iterator[None]:
    ran.append("capture")
    yield
    ran.append("captured")


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        ran.append("event")

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "Event") -> float:
        return 24.0


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    ran.clear()
    for name, value in {"CUDAGraph": Graph, "graph": capturing, "Event": Event}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(graph_clock.EventClock, "_flushed", torch.zeros(1))


def test_a_graph_goes_through_all_copies_with_semaphores_of_its_own() -> None:
    taken: list[Tensor] = []

    def call(name: str) -> None:
        ran.append(name)
        taken.append(zeroed_semaphores(4, torch.device("cpu")))

    clock = graph_clocks(CudaBackend(torch.device("cpu")).capture)([lambda: call("a"), lambda: call("b")])
    once = ["a", "b"] * (LEAST_CALLS // 2)
    assert ran == [*once, "capture", *once, "captured", "replay"]
    warm, captured = taken[:LEAST_CALLS], taken[LEAST_CALLS:]
    assert len({id(buffer) for buffer in captured}) == 1
    assert captured[0] is not warm[0] and len(captured[0]) > 4
    ran.clear()
    assert clock() == pytest.approx(24e-3 / LEAST_CALLS)
    assert ran == ["event", "replay", "event"]
