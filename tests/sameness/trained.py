"""A few steps of training under every recipe that differs in code."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from digests import of_tensors
from models import tiny

from zweave import Expert
from zweave.tasks import Sample, Splits, Task
from zweave.train import Recipe, open_policy, train

SAMPLES = [Sample("x", "a"), Sample("y", "b"), Sample("xx", "a"), Sample("a longer prompt", "b")]
LABELS = Task("letters", "", lambda data: Splits(SAMPLES, SAMPLES), labels=("a", "b"))
CHAT = [Sample(f"<|im_start|>user\n{s.prompt}<|im_end|>\n<|im_start|>assistant\n", s.answer) for s in SAMPLES]


def even(sample: Sample, text: str) -> float:
    return 1.0 if len(text.encode()) and text.encode()[0] % 2 else -1.0


GENERATED = replace(LABELS, labels=(), max_tokens=3, judge=even)
QUICK = Recipe(steps=6, batch=4, lr=0.03, draws=8, validate_every=3, validation=4)
RECIPES: dict[str, tuple[Task, dict[str, Any]]] = {
    "labels": (LABELS, {}),
    "leading": (LABELS, {"support": "leading:R/4", "balance": 0.5}),
    "sparse": (LABELS, {"support": "sparse:5"}),
    "after the prompt": (LABELS, {"scope": "after_prompt", "seed": 3}),
    "first layer": (LABELS, {"first_layer": 1}),
    "lora": (LABELS, {"adapter": "lora", "rank": 4}),
    "generated": (GENERATED, {}),
    "plain": (GENERATED, {"objective": "plain"}),
    "grpo": (GENERATED, {"objective": "grpo"}),
    "sft": (LABELS, {"objective": "sft"}),
}


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in RECIPES:
        yield f"float32/{name}", partial(trained, name, torch.float32)
    for name in ("labels", "leading", "generated"):
        yield f"bfloat16/{name}", partial(trained, name, torch.bfloat16)


def trained(name: str, dtype: torch.dtype) -> Any:
    """What each step reports, what is learnt, and the expert's file."""
    task, chosen = RECIPES[name]
    recipe = replace(QUICK, **chosen)
    policy = open_policy(str(tiny("llama")), recipe, dtype)
    samples = CHAT if recipe.scope == "after_prompt" else SAMPLES
    steps = [
        [step.step, step.reward, step.accuracy, step.lr, step.gradient_norm, step.validation, step.improved]
        for step in train(policy, task, samples, samples, recipe)
    ]
    found: dict[str, Any] = {"steps": steps, "parameters": of_tensors(*policy.adapter.parameters())}
    if recipe.adapter == "svf":
        with tempfile.TemporaryDirectory() as folder:
            policy.adapter.save(Path(folder) / "it.safetensors", "", {})
            expert = Expert.load(Path(folder) / "it.safetensors")
        found["expert"] = [expert.digest, expert.scope, expert.first_layer, expert.support]
    return found
