"""How many kernels a step launches: their number is what a small model's step costs."""

from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch

from zweave.adapters.lora import Lora, LoraPair
from zweave.engine import Engine
from zweave.engine.gpu.backend import ReferenceBackend
from zweave.experts import Expert
from zweave.kernels import REFERENCE_OPS, DeviceOps
from zweave.planner import MatrixPlan
from zweave.request import Request

# Of a layer of decoding: two norms, rope and store, attention (which combines its splits in one more launch), and the
# products: qkv, o, gate and up with their gate, down. Deltas of integers take one more, for the gate, and LoRAs add two
# launches a product, and one for the gate.
BUDGET = {"dense": 8, "delta": 8, "factored": 8, "integers": 9, "lora": 17}


def integer_plan(shapes: dict[str, tuple[int, int]], *_: Any) -> dict[str, MatrixPlan]:
    """W and all components in int8."""
    return {name: MatrixPlan(s, True, min(s), factored=False, format="int8") for name, s in shapes.items()}


@pytest.mark.parametrize("mode", BUDGET)
def test_launches_of_a_step(
    mode: str,
    tiny_engine: Callable[..., Engine],
    random_expert: Callable[..., Expert],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return getattr(REFERENCE_OPS, name)(*args, **kwargs)

        return call

    backend = ReferenceBackend()
    backend.ops = DeviceOps(**{field.name: counted(field.name) for field in fields(DeviceOps)})
    monkeypatch.setattr("zweave.engine.gpu.build.backend_of", lambda *_: backend)
    if mode == "integers":
        monkeypatch.setattr("zweave.engine.engine_parts.plan_for", integer_plan)
    engine = tiny_engine(device="reference", lora_components=16)
    shapes = engine.model.config.adapted_shapes()
    few = {
        name: torch.cat([torch.full((min(s) // 8,), 1.5), torch.ones(min(s) - min(s) // 8)])
        for name, s in shapes.items()
    }
    engine.load_expert("few", Expert(few))
    engine.load_expert(
        "lora",
        Lora({name: LoraPair(torch.ones(2, N), torch.ones(M, 2), 1.0) for name, (M, N) in shapes.items()}),
    )
    expert = {"lora": "lora", "dense": None, "delta": "few", "factored": "a", "integers": "a"}[mode]
    for i in range(4):
        engine.add(Request([3 + i, 4, 5], expert=expert, max_tokens=3, ignore_eos=True))
    engine.step()  # launches the prompts
    engine.step()  # launches the first decoding, and waits for the prompts
    calls.clear()
    engine.step()  # waits for it
    layers = engine.model.config.num_layers
    assert calls.pop("sample") == 1 and calls.pop("linear") == 1  # the head
    assert calls["add_rms_norm"] == 2 * layers + 1
    assert calls.total() + calls["add_components"] - 1 == BUDGET[mode] * layers
