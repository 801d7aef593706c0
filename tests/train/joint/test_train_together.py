"""Trainings that share their passes: each learns what it learns alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.errors import ZweaveError
from zweave.tasks.task import Sample, Splits, Task
from zweave.train import Policy, Recipe, open_policy
from zweave.train.joint.loop import train_together
from zweave.train.loop import Step, Training, train
from zweave.train.run import open_policies

pytest.importorskip("transformers")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# Of several lengths, so that no training has as many rows as another.
SAMPLES = [Sample(CHAT.format("xy"[i % 2] * (1 + i)), "ab"[i % 2]) for i in range(6)]
LETTERS = Task("letters", "", lambda data: Splits(SAMPLES, SAMPLES), labels=("a", "b"))
SPELT = [Sample(sample.prompt[:-3], sample.answer + "b") for sample in SAMPLES]
WORDS = Task("words", "", lambda data: Splits(SPELT, SPELT), labels=("ab", "bb"))
TEXTS = replace(
    LETTERS, name="texts", labels=(), max_tokens=3, judge=lambda s, t: 1.0 if t.encode()[:1] > b"a" else -1.0
)
QUICK = Recipe(steps=4, batch=3, lr=0.03, draws=4, validate_every=2, validation=2)
Case = tuple[Task, Recipe]
MIXED: dict[str, list[Case]] = {
    "tasks": [
        (LETTERS, QUICK),
        (WORDS, replace(QUICK, seed=1, batch=2)),
        (TEXTS, replace(QUICK, objective="grpo")),
    ],
    "supports": [
        (LETTERS, replace(QUICK, support="leading:5")),
        (LETTERS, replace(QUICK, support="leading:5", seed=2)),
        (LETTERS, replace(QUICK, support="sparse:5")),
        (LETTERS, replace(QUICK, objective="sft")),
    ],
    "scopes": [
        (LETTERS, replace(QUICK, scope="after_prompt")),
        (LETTERS, replace(QUICK, first_layer=1)),
        (TEXTS, replace(QUICK, objective="plain", steps=2)),
    ],
}
LORAS = [(LETTERS, replace(QUICK, adapter="lora", rank=4)), (WORDS, replace(QUICK, adapter="lora", rank=2, seed=5))]


@pytest.fixture
def model(tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    return str(tiny_model("llama"))


def trainings(model: str, cases: Sequence[Case], dtype: torch.dtype, **options: Any) -> list[Training]:
    policies = open_policies(model, [recipe for _, recipe in cases], dtype)
    return [
        Training(policy, *material(task, recipe), **options)
        for policy, (task, recipe) in zip(policies, cases, strict=True)
    ]


def material(task: Task, recipe: Recipe) -> tuple[Task, list[Sample], list[Sample], Recipe]:
    samples = task.samples("test")
    return task, samples, samples[: recipe.validation], recipe


def bits(policy: Policy) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in policy.adapter.parameters()]


def told(step: Step) -> tuple[Any, ...]:
    """All of a step but its time."""
    return tuple(getattr(replace(step, seconds=0.0), name) for name in Step.__slots__)


def alone(model: str, case: Case, dtype: torch.dtype) -> tuple[list[Any], list[torch.Tensor]]:
    policy = open_policy(model, case[1], dtype)
    steps = [told(step) for step in train(policy, *material(*case))]
    return steps, bits(policy)


@DTYPES
@pytest.mark.parametrize("cases", MIXED.values(), ids=MIXED)
def test_each_learns_the_bits_that_it_learns_alone(model: str, cases: list[Case], dtype: torch.dtype) -> None:
    together = trainings(model, cases, dtype)
    steps: list[list[Any]] = [[] for _ in cases]
    for index, outcome in train_together(together):
        assert isinstance(outcome, Step)
        steps[index].append(told(outcome))
    for training, found, case in zip(together, steps, cases, strict=True):
        expected, learnt = alone(model, case, dtype)
        assert found == expected
        for one, other in zip(bits(training.policy), learnt, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
