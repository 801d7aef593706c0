"""A model that was never decomposed is decomposed where it is used: on its CUDA device, else on the CPU."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zweave.engine.config import EngineConfig
from zweave.engine.engine_parts import load_parts
from zweave.train import Recipe, open_policy


class AskedError(Exception):
    """Holds the device that a decomposition was asked of."""


def asked(source: object, *, device: str = "cpu", **_: object) -> None:
    raise AskedError(device)


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of a machine with one CUDA device; no tensor gets there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.parametrize(
    ("device", "wanted"), [("cuda", "cuda"), ("cuda:0", "cuda:0"), ("cpu", "cpu"), ("reference", "cpu")]
)
def test_an_engine(
    device: str, wanted: str, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zweave.engine.engine_parts.decompose", asked)
    with pytest.raises(AskedError, match=f"^{wanted}$"):
        load_parts(tiny_model("llama"), EngineConfig(device=device))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_training(device: str, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zweave.train.run.decompose", asked)
    with pytest.raises(AskedError, match=f"^{device}$"):
        open_policy(str(tiny_model("llama")), Recipe(), torch.float32, device)


@pytest.mark.parametrize(("device", "wanted"), [("cuda:0", "cuda:0"), ("cpu", "cpu"), ("mps", "cpu")])
def test_an_attached_model(device: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = pytest.importorskip("zweave.integrations.transformers.factors")
    monkeypatch.setattr(factors, "decompose", asked)
    linear: Any = SimpleNamespace(weight=SimpleNamespace(device=torch.device(device)))
    with pytest.raises(AskedError, match=f"^{wanted}$"):
        factors.decomposition_of(torch.nn.Module(), {"layers.0.up": linear})
