"""A step never waits for the device, nor looks at its tensors."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zweave.engine import Engine
from zweave.engine.gpu.backend import ReferenceBackend
from zweave.io.submit import Work
from zweave.kernels import REFERENCE_OPS, DeviceOps
from zweave.request import Request, Sampling

EDITS = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "logit_bias": {7: 3.0}}
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique",
    "is_nonzero",
    "equal",
    "repeat_interleave",
)


class NoSync(TorchDispatchMode):
    """Refuses what has to know a value of the device on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if any(name.startswith(wait) for wait in WAITS):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference, which stands for a kernel: what it does inside does not count."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            return function(*args, **kwargs)

    return call


class WatchedBackend(ReferenceBackend):
    ops = DeviceOps(**{f.name: watched(getattr(REFERENCE_OPS, f.name)) for f in fields(DeviceOps)})

    def submit(self, work: Work) -> None:
        def strict() -> None:
            with NoSync():
                work()

        super().submit(strict)


def test_the_watch_sees_a_wait() -> None:
    backend = WatchedBackend()
    backend.submit(lambda: torch.ones(3)[torch.tensor(1)].add_(0))
    with pytest.raises(AssertionError, match="waits for the device"):
        backend.mark()()


def test_no_step_waits(tiny_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zweave.engine.gpu.build.backend_of", lambda device: WatchedBackend())
    engine = tiny_engine(device="reference", kv_tokens=160, slots=2, max_batch_tokens=40, max_sequences=8)
    requests = [
        Request(
            list(range(3, 8 + 5 * i)),
            expert=(None, "a", "late", {"a": 0.5, "b": 0.5})[i % 4],
            max_tokens=6,
            sampling=Sampling(
                temperature=float(i % 2),
                top_k=5 * (i % 3),
                seed=i,
                **(EDITS if i % 4 == 3 else {}),
            ),
            logprobs=3 if i % 3 == 0 else None,
            score=(1, 2) if i % 5 == 0 else (),
        )
        for i in range(12)
    ]
    assert all(result.error is None for result in engine.generate([*requests, *requests]))
    assert engine.stats().tokens_resumed > 0
