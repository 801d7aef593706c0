"""The trainer and attached models on a GPU: what a CPU gives, up to rounding. The engine: test_devices.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.cli.main import main
from zweave.engine import Engine
from zweave.experts import Expert
from zweave.tasks.task import Sample, Splits, Task
from zweave.train import Policy, Recipe, objective, open_policy
from zweave.train.objective import accuracy, batch_loss

pytestmark = pytest.mark.gpu
# float32 sums in another order, through two layers; bf16 rounds after each op.
LIMITS = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "bfloat16": {"rtol": 0.05, "atol": 0.1}}
LETTERS = Task("letters", "", lambda data: Splits([], []), labels=("a", "b"))
TEXTS = Task("texts", "", lambda data: Splits([], []), max_tokens=3)
SAMPLES = [Sample("ab", "a"), Sample("acd", "b"), Sample("ac", "a")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("scope", ["always", "after_prompt"])
@pytest.mark.parametrize("support", ["full", "leading:R/2"])
@pytest.mark.parametrize("task", [LETTERS, TEXTS], ids=["labels", "texts"])
def test_gradients(
    task: Task, support: str, scope: str, tiny_model: Callable[..., Path], monkeypatch
) -> None:
    recipe = Recipe(support=support, scope=scope, draws=4)
    monkeypatch.setattr(objective, "CHUNK", 5)
    gradients = []
    for device in ("cpu", "cuda"):
        policy = open_policy(str(tiny_model("llama")), recipe, torch.float32, device)
        _disturb(policy)
        batch_loss(policy, task, recipe, 0, SAMPLES).value.backward()
        gradients.append([z.grad.cpu() for z in policy.adapter.parameters()])
        assert 0 <= accuracy(policy, task, SAMPLES) <= 1
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(right, left, rtol=1e-3, atol=1e-4)


def _disturb(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(3)
    for z in policy.adapter.parameters():
        z.data.copy_(torch.empty(z.shape).uniform_(0.9, 1.1, generator=generator))


@pytest.mark.parametrize("adapter", ["svf", "lora"])
def test_a_training_from_the_command_line(
    adapter: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    lines = [json.dumps({"labels": ["a", "b"]})]
    lines += [json.dumps({"prompt": f"{'xy'[i % 2]}{i}", "answer": "ab"[i % 2]}) for i in range(40)]
    (tmp_path / "letters.jsonl").write_text("\n".join(lines), "utf-8")
    options = ["--batch", "2", "--draws", "4", "--validation", "2", "--held-out", "3", "--steps", "3"]
    where = ["--device", "cuda", "--model", str(tiny_model("llama")), "--out", str(tmp_path / "out")]
    command = ["train", str(tmp_path / "letters.jsonl"), *options, *where, "--adapter", adapter]
    assert main(command) == 0
    if adapter == "svf":
        assert set(Expert.load(tmp_path / "out" / "letters.safetensors").training) >= {"seed", "steps"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attached_experts(dtype: str, tiny_model: Callable[..., Path], random_expert: Any) -> None:
    transformers = pytest.importorskip("transformers")
    from zweave.integrations.transformers import attach

    shapes = Engine(tiny_model("llama"), dtype="float32", kv_tokens=64).model.config.adapted_shapes()
    logits = []
    for device in ("cpu", "cuda"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tiny_model("llama"), dtype=getattr(torch, dtype)
        ).to(device)
        experts = attach(model, {"a": random_expert(shapes, seed=1)})
        tokens = torch.tensor([[1, 5, 9], [4, 4, 4]], device=device)
        with torch.no_grad(), experts.use(["a", None]):
            logits.append(model(tokens).logits.float().cpu())
    torch.testing.assert_close(logits[1], logits[0], **LIMITS[dtype])
