"""Losses of drawn and given answers, and rollouts: against the same thing done answer by answer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zweave.errors import ZweaveError
from zweave.tasks.task import Sample, Splits, Task
from zweave.train import Policy, Recipe, objective, open_policy
from zweave.train.estimators import choice_loss
from zweave.train.objective import accuracy, answer_loss, batch_loss
from zweave.train.rollout import Rollout, sample_answers, teacher_forced

pytest.importorskip("transformers")
TASK = Task("texts", "", lambda data: Splits([], []), max_tokens=3)
SAMPLES = [Sample("ab", "x"), Sample("acd", "yz")]


@pytest.fixture
def policy(tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policy:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    policy = open_policy(str(tiny_model("llama")), Recipe(), torch.float32)
    with torch.no_grad():
        # Peaked, so that answers repeat and share beginnings.
        policy.model.lm_head.weight *= 6
    return policy


def logits_alone(policy: Policy, tokens: list[int]) -> Tensor:
    return policy.model(torch.tensor([tokens])).logits[0]


def tokens_of(rollout: Rollout) -> list[list[int]]:
    return [[token for _, token in steps] for steps in rollout.steps]


@pytest.mark.parametrize("chunk", [512, 3], ids=["one chunk", "several"])
@pytest.mark.parametrize("kl", [0.0, 0.7])
def test_answer_loss_has_the_gradient_of_the_answers_one_by_one(
    policy: Policy, kl: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(3)
    for z in policy.adapter.parameters():
        z.data.uniform_(0.9, 1.1, generator=generator)
    rollout = sample_answers(policy, TASK, SAMPLES, 6, generator)
    answers = tokens_of(rollout)
    assert len(answers) == 12 and len(set(map(tuple, answers))) < 12
    advantage = torch.randn(12, generator=generator)
    z = policy.adapter.parameters()
    found = torch.autograd.grad(answer_loss(policy, rollout, advantage, kl), z)
    alone = torch.zeros(())
    prompts = [policy.tokenizer.encode(sample.prompt) for sample in SAMPLES for _ in range(6)]
    for prompt, answer, weight in zip(prompts, answers, advantage, strict=True):
        part = slice(len(prompt) - 1, -1)
        log_policy = logits_alone(policy, prompt + answer)[part].log_softmax(-1)
        with torch.no_grad(), policy.adapter.base():
            base = logits_alone(policy, prompt + answer)[part].log_softmax(-1)
        alone = alone - weight * log_policy[range(len(answer)), answer].sum() / 12
        alone = alone + kl * (log_policy.exp() * (log_policy - base)).sum() / 12
    for one, other in zip(found, torch.autograd.grad(alone, z), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_greedy_answers_are_those_of_transformers(policy: Policy) -> None:
    samples = [Sample(prompt, "") for prompt in ("abc", "ab", "zzzz", "abc")]
    rollout = sample_answers(policy, replace(TASK, max_tokens=6), samples)
    for sample, answer in zip(samples, tokens_of(rollout), strict=True):
        prompt = policy.tokenizer.encode(sample.prompt)
        model: Any = policy.model
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=2)
        assert answer == expected[0, len(prompt) :].tolist()


def test_an_answer_may_run_along_another_prompt(policy: Policy) -> None:
    task = replace(TASK, max_tokens=4)
    first = sample_answers(policy, task, [Sample("ab", "")])
    longer = "ab" + policy.tokenizer.decode(tokens_of(first)[0][:3], skip_special=False) + "!"
    both = sample_answers(policy, task, [Sample("ab", ""), Sample(longer, "")])
    assert tokens_of(both)[0] == tokens_of(first)[0]


def test_an_answer_ends_before_a_stop_string(policy: Policy) -> None:
    task = replace(TASK, max_tokens=5)
    whole = sample_answers(policy, task, SAMPLES[:1])
    stop = policy.tokenizer.decode(tokens_of(whole)[0][2:3])
    stopped = sample_answers(policy, replace(task, stop=(stop,)), SAMPLES[:1])
    assert stopped.texts[0] == whole.texts[0].partition(stop)[0]
    assert len(stopped.steps[0]) <= 3


def test_an_answer_ends_at_a_special_token_as_in_serving(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(TASK, max_tokens=5)
    whole = tokens_of(sample_answers(policy, task, SAMPLES[:1]))[0]
    stop = policy.tokenizer.decode(whole[2:3], skip_special=False)
    monkeypatch.setattr(policy.tokenizer.token_bytes, "_special", frozenset(whole[2:3]))
    stopped = sample_answers(policy, replace(task, stop=(stop,)), SAMPLES[:1])
    assert tokens_of(stopped)[0] == whole[: whole.index(whole[2]) + 1]
    assert stop not in stopped.texts[0]


def test_given_answers_are_their_tokens_and_an_end(policy: Policy) -> None:
    rollout = teacher_forced(policy, TASK, SAMPLES)
    ends = list(policy.tokenizer.eos_ids)[:1]
    expected = [policy.tokenizer.encode(s.answer, special=False) + ends for s in SAMPLES]
    assert tokens_of(rollout) == expected
    loss = batch_loss(policy, TASK, Recipe(objective="sft"), 0, SAMPLES).value
    by_hand = []
    for sample, answer in zip(SAMPLES, expected, strict=True):
        prompt = policy.tokenizer.encode(sample.prompt)
        rows = logits_alone(policy, prompt + answer)[len(prompt) - 1 : -1].log_softmax(-1)
        by_hand += [rows[i, token] for i, token in enumerate(answer)]
    torch.testing.assert_close(loss, -torch.stack(by_hand).mean(), rtol=1e-4, atol=1e-4)


def test_answers_are_drawn_by_their_probability(policy: Policy) -> None:
    task = replace(TASK, max_tokens=1)
    count = 20_000
    drawn = [
        tokens[0]
        for tokens in tokens_of(
            sample_answers(policy, task, SAMPLES[:1], count, torch.Generator().manual_seed(0))
        )
    ]
    expected = logits_alone(policy, policy.tokenizer.encode("ab"))[-1].detach().softmax(-1)
    found = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / count
    # Four standard errors.
    assert ((found - expected).abs() <= 4 * (expected / count).sqrt() + 1e-4).all()


@pytest.mark.parametrize("kind", ["reinforce", "plain", "grpo"])
def test_the_reward_of_generated_answers_is_the_tasks(policy: Policy, kind: Any) -> None:
    asked = []

    def judge(sample: Sample, text: str) -> float:
        asked.append((sample.prompt, text))
        return float(len(asked))

    loss = batch_loss(policy, replace(TASK, judge=judge), Recipe(objective=kind, draws=3), 5, SAMPLES)
    assert [prompt for prompt, _ in asked] == ["ab"] * 3 + ["acd"] * 3
    assert loss.reward == 3.5 and loss.accuracy == 1.0 and not loss.no_signal
    again = batch_loss(
        policy, replace(TASK, judge=lambda s, t: 1.0), Recipe(objective=kind, draws=3), 5, SAMPLES
    )
    assert again.no_signal == (kind != "plain")


@pytest.mark.parametrize("chunk", [512, 3], ids=["one chunk", "several"])
def test_labels_of_several_tokens_have_the_probability_of_all_their_tokens(
    policy: Policy, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "CHUNK", chunk)
    # One label begins like another, and one prompt like another with a label.
    task = replace(TASK, labels=("ab", "abc", "d"), max_tokens=1)
    samples = [Sample("x", "abc"), Sample("xab", "d")]
    ends = list(policy.tokenizer.eos_ids)[:1]
    by_hand = []
    for sample in samples:
        prompt = policy.tokenizer.encode(sample.prompt)
        for label in task.labels:
            ids = policy.tokenizer.encode(label, special=False) + ends
            rows = logits_alone(policy, prompt + ids)[len(prompt) - 1 : -1].log_softmax(-1)
            by_hand.append(rows[range(len(ids)), ids].sum())
    scores = torch.stack(by_hand).view(2, 3)
    reward = torch.tensor([[-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    recipe = Recipe(draws=16)
    expected = choice_loss(
        scores,
        scores.logsumexp(-1),
        reward,
        draws=16,
        entropy=recipe.entropy_at(2),
        mass=recipe.mass,
        generator=torch.Generator().manual_seed(2),
    )
    loss = batch_loss(policy, task, recipe, 2, samples)
    torch.testing.assert_close(loss.value, expected, rtol=1e-4, atol=1e-4)
    assert loss.reward == pytest.approx((scores.softmax(-1) * reward).sum(-1).mean().item(), abs=1e-4)
    z = policy.adapter.parameters()
    found, wanted = (torch.autograd.grad(value, z) for value in (loss.value, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_the_batch_is_right_where_the_greedy_answer_is_the_label(policy: Policy) -> None:
    prompts = ("ab", "acd", "zzzz")
    greedy = [
        tokens[0] for tokens in tokens_of(sample_answers(policy, TASK, [Sample(p, "") for p in prompts]))
    ]
    paths = [[token] for token in greedy] + [[3, 4]]
    tree = policy.prefill(prompts)
    _, is_greedy = objective.label_log_probs(policy, tree, paths)
    assert is_greedy.tolist() == [[path[0] == token and len(path) == 1 for path in paths] for token in greedy]


def test_labels_of_several_tokens_are_shown_with_an_end_and_generated_in_full(policy: Policy) -> None:
    task = replace(TASK, labels=("ab", "abcde", "c"), max_tokens=1)
    ends = list(policy.tokenizer.eos_ids)[:1]
    samples = [Sample("x", "c"), Sample("xy", "abcde")]
    shown = teacher_forced(policy, task, samples)
    expected = [policy.tokenizer.encode(s.answer, special=False) + ends for s in samples]
    assert tokens_of(shown) == expected
    longest = max(map(len, tokens_of(sample_answers(policy, task, samples, 8))))
    assert 1 < longest <= len(expected[1])
    short = replace(task, labels=("a", "c"))
    assert tokens_of(teacher_forced(policy, short, samples[:1])) == [expected[0][:1]]
    assert {len(answer) for answer in tokens_of(sample_answers(policy, short, samples))} == {1}


def test_accuracy_is_the_share_of_right_greedy_answers(policy: Policy) -> None:
    answer = sample_answers(policy, TASK, [Sample("ab", "")]).texts[0]
    assert accuracy(policy, TASK, [Sample("ab", answer), Sample("ab", answer + "?")], batch=1) == 0.5


@pytest.mark.parametrize("prompt", ["", "a" * 600], ids=["empty", "too long"])
def test_a_prompt_that_cannot_be_read_is_refused(policy: Policy, prompt: str) -> None:
    with pytest.raises(ZweaveError, match="tokens: it must have 1 to 511"):
        policy.prefill([prompt])
