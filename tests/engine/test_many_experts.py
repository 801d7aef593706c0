"""Registered experts cost a step nothing, however many there are."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import zweave
from zweave.engine import Engine
from zweave.experts import Expert
from zweave.request import Request

RUNTIME = str(Path(zweave.__file__).parent)
PROMPT = [1, 5, 9, 40, 41, 7, 3]


def lines_run(work: Callable[[], object]) -> int:
    """Lines of our Python that some work runs through, every turn of a loop counted: the same wherever it runs."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename.startswith(RUNTIME) else None

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


def costs(engine: Engine, registered: int) -> list[int]:
    """Of an idle step, of requests under no expert, one that has a slot and one that has to get one, and of a load."""
    module, shape = next(iter(engine.model.config.adapted_shapes().items()))
    for index in range(registered):
        engine.load_expert(f"other-{index}", Expert({module: torch.full((min(shape),), 2.0 + index)}))

    def answer(expert: str | None) -> None:
        engine.generate(Request(PROMPT, expert=expert, max_tokens=3, ignore_eos=True))

    for expert in (None, "a", "b", "late"):
        answer(expert)
    work: list[Callable[[], object]] = [engine.step]
    work += [partial(answer, expert) for expert in (None, "late", "a")]
    work.append(partial(engine.load_expert, "b", Expert({module: torch.full((min(shape),), 0.5)})))
    return [lines_run(each) for each in work]


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_a_step_does_not_look_at_registered_experts(device: str, tiny_engine: Callable[..., Engine]) -> None:
    options = {"device": device, "slots": 2, "prefix_cache": False}
    costs(tiny_engine(**options), 0)  # fills the caches of modules
    assert costs(tiny_engine(**options), 100) == costs(tiny_engine(**options), 1)
