"""The loss of a batch under each objective."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..tasks.render import label_tokens, target_tokens
from ..tasks.task import Sample, Task
from . import estimators
from .policy import Policy, PromptTree
from .recipe import Recipe
from .rollout import Answer, Rollout, add_answer, sample_answers, teacher_forced

# Nodes whose logits are in memory at once: 100 MB at a vocabulary of 49,152.
CHUNK = 512


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a batch and its figures.

    value: the loss, differentiable.
    reward: mean reward of the answers.
    accuracy: share of answers whose reward is above 0.
    no_signal: whether all answers got the same reward, so that there is nothing to learn from them.
    """

    value: Tensor
    reward: float
    accuracy: float
    no_signal: bool = False


@dataclass(frozen=True, slots=True)
class PendingLoss:
    """A loss that waits for the hidden states of its nodes.

    prompts, nodes: as `Policy.hidden` takes them.
    of: the loss, given those states [nodes, hidden].
    """

    prompts: PromptTree
    nodes: list[int]
    of: Callable[[Tensor], Loss]


def batch_loss(policy: Policy, task: Task, recipe: Recipe, step: int, batch: list[Sample]) -> Loss:
    """The loss of one step. All random draws follow from the recipe's seed and the step alone."""
    pending = pending_loss(policy, task, recipe, step, batch)
    return pending.of(policy.hidden(pending.prompts, pending.nodes))


def pending_loss(policy: Policy, task: Task, recipe: Recipe, step: int, batch: list[Sample]) -> PendingLoss:
    """`batch_loss` up to its forward pass with gradient, the answers drawn."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    if recipe.objective == "sft":
        return _likelihood(policy, task, batch)
    if recipe.objective == "reinforce" and task.labels:
        return _labels(policy, task, recipe, step, batch, generator)
    rollout = sample_answers(policy, task, batch, recipe.draws, generator)
    asked = [sample for sample in batch for _ in range(recipe.draws)]
    reward = torch.tensor([task.reward(s, text) for s, text in zip(asked, rollout.texts, strict=True)])
    grouped = reward.view(-1, recipe.draws)
    if recipe.objective == "plain":
        advantage = grouped
    elif recipe.objective == "grpo":
        advantage = estimators.group_normalised(grouped)
    else:
        advantage = estimators.leave_one_out(grouped)
    # The bare reward has a gradient even where all answers got the same.
    no_signal = recipe.objective != "plain" and bool((grouped == grouped[:, :1]).all())
    kl = recipe.kl if recipe.objective == "plain" else 0.0

    def loss(hidden: Tensor) -> Loss:
        value = _answer_loss(policy, hidden, rollout, advantage.flatten(), kl)
        return Loss(value, reward.mean().item(), (reward > 0).float().mean().item(), no_signal)

    return PendingLoss(rollout.prompts, _drawn_at(rollout.steps), loss)


def _labels(
    policy: Policy, task: Task, recipe: Recipe, step: int, batch: list[Sample], generator: torch.Generator
) -> PendingLoss:
    tokens = label_tokens(policy.tokenizer, task)
    reward = torch.tensor([[task.reward(sample, label) for label in task.labels] for sample in batch])
    prompts = policy.prefill([sample.prompt for sample in batch])
    weights: dict[str, Any] = {
        "draws": recipe.draws,
        "entropy": recipe.entropy_at(step),
        "mass": recipe.mass,
        "balance": recipe.balance,
        "generator": generator,
    }

    def loss(value: Tensor, scores: Tensor, is_greedy: Tensor) -> Loss:
        with torch.no_grad():
            expected = (scores.softmax(-1) * reward).sum(-1).mean().item()
            right = (is_greedy & (reward > 0)).any(-1).float().mean().item()
        return Loss(value, expected, right, bool((reward == reward[:, :1]).all()))

    def single(hidden: Tensor) -> Loss:
        labels = torch.tensor(tokens).flatten()
        logits = policy.logits(hidden).cpu()
        value = estimators.label_loss(logits, labels, reward, **weights)
        return loss(value, logits[:, labels], logits.argmax(-1, keepdim=True) == labels)

    def several(hidden: Tensor) -> Loss:
        scores, is_greedy = (part.view(reward.shape) for part in _log_probs(policy, hidden, answers))
        return loss(
            estimators.choice_loss(scores, scores.logsumexp(-1), reward, **weights), scores, is_greedy
        )

    if all(len(ids) == 1 for ids in tokens):
        return PendingLoss(prompts, prompts.leaves, single)
    answers = _label_answers(prompts, target_tokens(policy.tokenizer, task, task.labels))
    return PendingLoss(prompts, _drawn_at(answers), several)


def label_log_probs(policy: Policy, prompts: PromptTree, labels: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Log-probabilities [prompts, labels] of labels of several tokens, and whether the greedy answer is that label.

    Labels are branches of the prompts: what begins alike is computed once.

    labels: token ids of each, its end token included where it has one.
    """
    answers = _label_answers(prompts, labels)
    scores, is_greedy = _log_probs(policy, policy.hidden(prompts, _drawn_at(answers)), answers)
    shape = (len(prompts.leaves), len(labels))
    return scores.view(shape), is_greedy.view(shape)


def _label_answers(prompts: PromptTree, labels: list[list[int]]) -> list[Answer]:
    return [add_answer(prompts, leaf, label) for leaf in prompts.leaves for label in labels]


def _drawn_at(answers: Iterable[Answer]) -> list[int]:
    """The nodes at which a token of an answer was drawn, in order."""
    return sorted({node for answer in answers for node, _ in answer})


def _log_probs(policy: Policy, hidden: Tensor, answers: Sequence[Answer]) -> tuple[Tensor, Tensor]:
    """Log-probability [answers] of each, and whether it is the greedy one.

    hidden: states of `_drawn_at(answers)`.
    """
    steps, nodes = sorted({step for answer in answers for step in answer}), _drawn_at(answers)
    parts = []
    for start in range(0, len(nodes), CHUNK):
        row = {node: i for i, node in enumerate(nodes[start : start + CHUNK])}
        pairs = [(row[node], token) for node, token in steps if node in row]
        at, token = (torch.tensor(column, device=hidden.device) for column in zip(*pairs, strict=True))
        arguments = (policy, hidden[start : start + CHUNK], at, token)
        # Recomputing in the backward pass saves memory only if there are several chunks.
        if len(nodes) <= CHUNK:
            parts.append(_chunk_log_probs(*arguments))
        else:
            parts.append(checkpoint(_chunk_log_probs, *arguments, use_reentrant=False))
    log_p, is_likeliest = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    # Steps are in the order of their nodes, as the chunks are.
    place = {step: i for i, step in enumerate(steps)}
    taken = torch.tensor([place[step] for answer in answers for step in answer])
    owner = torch.tensor([i for i, answer in enumerate(answers) for _ in answer])
    scores = torch.zeros(len(answers)).index_add(0, owner, log_p[taken])
    misses = torch.zeros(len(answers)).index_add(0, owner, (~is_likeliest[taken]).float())
    return scores, misses == 0


def _chunk_log_probs(policy: Policy, hidden: Tensor, at: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    log_policy = policy.logits(hidden).log_softmax(-1)
    return log_policy[at, token], log_policy.argmax(-1)[at] == token


def _likelihood(policy: Policy, task: Task, batch: list[Sample]) -> PendingLoss:
    rollout = teacher_forced(policy, task, batch)
    tokens = sum(map(len, rollout.steps))
    advantage = torch.ones(len(batch)) * len(batch) / tokens

    def loss(hidden: Tensor) -> Loss:
        value = _answer_loss(policy, hidden, rollout, advantage)
        # The geometric mean of the tokens' probabilities stands for a reward.
        return Loss(value, value.neg().exp().item(), value.neg().exp().item())

    return PendingLoss(rollout.prompts, _drawn_at(rollout.steps), loss)


def answer_loss(policy: Policy, rollout: Rollout, advantage: Tensor, kl: float = 0.0) -> Tensor:
    """Loss whose gradient is -mean over the answers of advantage * grad log p(answer | prompt), plus kl times the
    mean over the answers of the sum over their tokens of KL(policy || base).

    advantage: [answers], float32
    """
    hidden = policy.hidden(rollout.prompts, _drawn_at(rollout.steps))
    return _answer_loss(policy, hidden, rollout, advantage, kl)


def _answer_loss(
    policy: Policy, hidden: Tensor, rollout: Rollout, advantage: Tensor, kl: float = 0.0
) -> Tensor:
    """`answer_loss`, given the hidden states of the nodes at which tokens were drawn."""
    weights: dict[tuple[int, int], float] = {}
    visits: dict[int, int] = {}
    for steps, weight in zip(rollout.steps, advantage.tolist(), strict=True):
        for step in steps:
            weights[step] = weights.get(step, 0.0) + weight
            visits[step[0]] = visits.get(step[0], 0) + 1
    nodes = sorted(visits)
    base = None
    if kl:
        with torch.no_grad(), policy.adapter.base():
            base = policy.hidden(rollout.prompts, nodes)
    total = torch.zeros((), device=hidden.device)
    for start in range(0, len(nodes), CHUNK):
        part = slice(start, start + CHUNK)
        row = {node: i for i, node in enumerate(nodes[part])}
        mine = [(row[node], token, weight) for (node, token), weight in weights.items() if node in row]
        at, drawn, weight = (torch.tensor(column, device=hidden.device) for column in zip(*mine, strict=True))
        counts = kl * torch.tensor([float(visits[node]) for node in nodes[part]], device=hidden.device)
        arguments = (policy, hidden[part], None if base is None else base[part], at, drawn, weight, counts)
        # Recomputing in the backward pass saves memory only if there are several chunks.
        if len(nodes) <= CHUNK:
            total = total + _chunk_loss(*arguments)
        else:
            total = total + checkpoint(_chunk_loss, *arguments, use_reentrant=False)
    return total / len(rollout.steps)


def _chunk_loss(
    policy: Policy, hidden: Tensor, base: Tensor | None, at: Tensor, drawn: Tensor, weight: Tensor, kl: Tensor
) -> Tensor:
    log_policy = policy.logits(hidden).log_softmax(-1)
    loss = -(weight * log_policy[at, drawn]).sum()
    if base is not None:
        difference = log_policy - policy.logits(base).log_softmax(-1)
        loss = loss + (kl * (log_policy.exp() * difference).sum(-1)).sum()
    return loss


def accuracy(policy: Policy, task: Task, samples: list[Sample], batch: int = 32) -> float:
    """Share of samples whose greedy answer over the whole vocabulary has a reward above 0."""
    hits = 0
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        texts = sample_answers(policy, task, part).texts
        hits += sum(task.reward(sample, text) > 0 for sample, text in zip(part, texts, strict=True))
    return hits / len(samples)
