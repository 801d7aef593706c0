"""The engine, the trainer and attached models on a GPU: what a CPU gives, up to rounding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.cli.main import main
from zweave.engine import Engine
from zweave.engine.sampler import Sampling
from zweave.experts import Expert
from zweave.request import Request
from zweave.tasks.task import Sample, Splits, Task
from zweave.train import Policy, Recipe, objective, open_policy
from zweave.train.objective import accuracy, batch_loss

pytestmark = pytest.mark.gpu
# float32 sums in another order, through two layers; bf16 rounds after each op.
LIMITS = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "bfloat16": {"rtol": 0.05, "atol": 0.1}}
PROMPTS = [[1, 5, 9, 40, 41, 7, 3], [8] * 21, list(range(3, 60)), [1, 5, 9, 40, 41, 7, 3], [60]]
CHOICES: list[Any] = ["a", None, {"a": 0.5, "b": 0.25}, "late", "b"]
LETTERS = Task("letters", "", lambda data: Splits([], []), labels=("a", "b"))
TEXTS = Task("texts", "", lambda data: Splits([], []), max_tokens=3)
SAMPLES = [Sample("ab", "a"), Sample("acd", "b"), Sample("ac", "a")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))


def requests(expert_of: Callable[[int], Any], **options: Any) -> list[Request]:
    return [Request(prompt, expert=expert_of(i), max_tokens=8, **options) for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_of_a_mixed_batch(dtype: str, tiny_engine: Callable[..., Engine], prompt_logits: Any) -> None:
    pairs = list(zip(PROMPTS, CHOICES, strict=True))
    here, there = (prompt_logits(tiny_engine(dtype, device=device), pairs) for device in ("cpu", "cuda"))
    for left, right in zip(here, there, strict=True):
        torch.testing.assert_close(right.cpu(), left, **LIMITS[dtype])


def test_answers_whatever_was_cached(tiny_engine: Callable[..., Engine]) -> None:
    expected = [r.token_ids for r in tiny_engine().generate(requests(CHOICES.__getitem__))]
    engine = tiny_engine(device="cuda", max_batch_tokens=64)
    for _ in range(2):
        results = engine.generate(requests(CHOICES.__getitem__))
        assert [result.token_ids for result in results] == expected
    assert sum(result.reused_tokens for result in results) > 0
    again = engine.generate(Request(PROMPTS[1], expert="late", max_tokens=8))[0]
    assert again.resumed_tokens > 0
    assert (
        again.token_ids
        == tiny_engine().generate(Request(PROMPTS[1], expert="late", max_tokens=8))[0].token_ids
    )


def test_samples_and_log_probabilities(tiny_engine: Callable[..., Engine]) -> None:
    options = {"sampling": Sampling(temperature=0.8, seed=3), "logprobs": 2}
    here, there = (
        tiny_engine(device=d).generate(requests(lambda i: "a", **options)) for d in ("cpu", "cuda")
    )
    for left, right in zip(here, there, strict=True):
        assert left.token_ids == right.token_ids
        assert left.logprobs is not None and right.logprobs is not None
        for one, other in zip(left.logprobs, right.logprobs, strict=True):
            assert other.logprob == pytest.approx(one.logprob, abs=1e-3)


def test_pooled_states(tiny_engine: Callable[..., Engine]) -> None:
    here, there = (tiny_engine(device=d).pooled_states(PROMPTS, [1, 2]) for d in ("cpu", "cuda"))
    torch.testing.assert_close(there.cpu(), here.cpu(), **LIMITS["float32"])


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
