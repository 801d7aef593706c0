"""Trainings that share their passes: each learns what it learns alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.tasks.task import Sample, Splits, Task
from zweave.train import Policy, Recipe, open_policy
from zweave.train.forward import joint_hidden_states
from zweave.train.joint.loop import train_together
from zweave.train.loop import Step, Training, train
from zweave.train.run import open_policies
from zweave.train.svf import SvfLinear, svf_rows

pytest.importorskip("transformers")
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
    "loras": [
        (LETTERS, replace(QUICK, adapter="lora", rank=4)),
        (WORDS, replace(QUICK, adapter="lora", rank=2, seed=5)),
        (LETTERS, replace(QUICK, adapter="lora", rank=4, scope="after_prompt", batch=1)),
    ],
}


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> str:
    return str(tiny_model("llama"))


def trainings(model: str, cases: Sequence[Case], dtype: torch.dtype) -> list[Training]:
    policies = open_policies(model, [recipe for _, recipe in cases], dtype)
    return [
        Training(policy, *material(task, recipe))
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


@pytest.mark.parametrize(
    ("cases", "dtype"),
    [*((cases, torch.float32) for cases in MIXED.values()), (MIXED["tasks"], torch.bfloat16)],
    ids=[*MIXED, "tasks in bf16"],
)
def test_each_learns_the_bits_that_it_learns_alone(model: str, cases: list[Case], dtype: torch.dtype) -> None:
    together = trainings(model, cases, dtype)
    steps: list[list[Any]] = [[] for _ in cases]
    for index, outcome in train_together(together):
        assert isinstance(outcome, Step)
        steps[index].append(told(outcome))
    for training, found, case in zip(together, steps, cases, strict=True):
        expected, learnt = alone(model, case, dtype)
        assert found == expected
        assert_same(bits(training.policy), learnt)


def test_those_of_one_support_share_their_products(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def spied(linears: Sequence[SvfLinear], x: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        seen.add(tuple(len(linear.z) for linear in linears))
        return svf_rows(linears, x, rows)

    monkeypatch.setattr("zweave.train.joint.linear.svf_rows", spied)
    recipes = [
        replace(QUICK, support=support, steps=1) for support in ("full", "leading:5", "full", "leading:5")
    ]
    list(train_together(trainings(model, [(LETTERS, recipe) for recipe in recipes], torch.float32)))
    # Of rank 16 are the keys' and values' matrices.
    assert seen == {(32, 32), (16, 16), (5, 5)}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_nodes_of_several_trees_have_the_states_that_they_have_alone(
    tiny_model: Callable[..., Path], kind: str
) -> None:
    policies = open_policies(
        str(tiny_model(kind)), [QUICK, replace(QUICK, support="leading:5"), QUICK], torch.float32
    )
    random = torch.Generator().manual_seed(0)
    for policy in policies:
        for z in policy.adapter.parameters():
            z.data += 0.1 * torch.randn(z.shape, generator=random)
    prompts = [
        policy.prefill([sample.prompt for sample in SAMPLES[: i + 2]]) for i, policy in enumerate(policies)
    ]
    parts = [policy.part(tree, tree.leaves) for policy, tree in zip(policies, prompts, strict=True)]
    with torch.no_grad():
        together = joint_hidden_states(parts)
        assert_same(
            together,
            [policy.hidden(tree, tree.leaves) for policy, tree in zip(policies, prompts, strict=True)],
        )


def learnt_together(model: str, cases: Sequence[Case]) -> list[list[torch.Tensor]]:
    together = trainings(model, cases, torch.float32)
    assert all(isinstance(outcome, Step) for _, outcome in train_together(together))
    return [bits(training.policy) for training in together]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_one_that_is_done_or_fails_leaves_the_others_as_they_are(model: str) -> None:
    raises = replace(LETTERS, name="raises", judge=lambda sample, text: 1 / 0)
    even = replace(LETTERS, name="even", judge=lambda sample, text: 0.5)
    impatient = replace(QUICK, validate_every=1, patience=1, steps=14)
    cases = [
        (even, replace(QUICK, steps=12, validate_every=12)),
        (LETTERS, replace(QUICK, steps=14)),
        (raises, QUICK),
        (replace(LETTERS, judge=lambda sample, text: 1.0 if text == "a" else -1.0), impatient),
    ]
    together = trainings(model, cases, torch.float32)
    steps: list[list[Any]] = [[] for _ in cases]
    for index, outcome in train_together(together):
        steps[index].append(told(outcome) if isinstance(outcome, Step) else outcome)
    assert len(steps[0]) == 10 and "same reward" in str(steps[0].pop())
    assert "the reward of the task raises fails: ZeroDivisionError" in str(*steps[2])
    assert len(steps[3]) < 14 and steps[3] == alone(model, cases[3], torch.float32)[0]
    expected, learnt = alone(model, cases[1], torch.float32)
    assert steps[1] == expected
    assert_same(bits(together[1].policy), learnt)


@pytest.mark.parametrize("cases", [MIXED["tasks"][:2], MIXED["loras"][:2]], ids=["svf", "lora"])
def test_an_interrupted_run_ends_in_the_same_bits(model: str, cases: list[Case], tmp_path: Path) -> None:
    whole = learnt_together(model, cases)

    def begun() -> list[Training]:
        policies = open_policies(model, [recipe for _, recipe in cases], torch.float32)
        return [
            Training(policy, *material(*case), state=tmp_path / f"{i}.state")
            for i, (policy, case) in enumerate(zip(policies, cases, strict=True))
        ]

    # Cut between the savings of a step's trainings: the first has made two steps, the others one.
    cut = begun()
    for index, step in islice(train_together(cut), len(cases) + 1):
        assert isinstance(step, Step)
        cut[index].save_after(step)
    resumed = begun()
    assert [training.progress.step for training in resumed] == [2, *[1] * (len(cases) - 1)]
    for _ in train_together(resumed):
        pass
    for training, expected in zip(resumed, whole, strict=True):
        assert_same(bits(training.policy), expected)
