"""Answers drawn from the policy as it is, a tree of them on every prompt."""

from dataclasses import dataclass
from typing import Protocol

import torch

from ..tasks.render import answer_ids
from ..tasks.task import Sample, Task
from ..text.detokenizer import before_stop
from .forward import hidden_states
from .policy import Planted, Policy


@dataclass(frozen=True, slots=True)
class Rollout:
    """Answers grown on planted prompts; a step of an answer is (the node it was drawn at, the token drawn).

    steps: for each answer its steps, the end token included; the last token drawn is not in the tree
    texts: the answers as the reward reads them, cut before the task's stop strings
    """

    planted: Planted
    steps: list[list[tuple[int, int]]]
    texts: list[str]


class Sampler(Protocol):
    """Where rollouts come from."""

    def __call__(
        self, policy: Policy, task: Task, samples: list[Sample], draws: int | None, generator: torch.Generator
    ) -> Rollout: ...


@torch.no_grad()
def grow(
    policy: Policy,
    task: Task,
    samples: list[Sample],
    draws: int | None = None,
    generator: torch.Generator | None = None,
) -> Rollout:
    """`draws` answers a prompt at temperature 1, prompt after prompt; one greedy answer when None.

    A forward pass reads the new nodes of all answers at once: equal beginnings are computed once.
    """
    planted = policy.plant([sample.prompt for sample in samples])
    tree, cache = planted.tree, planted.cache.copy()
    # An answer may run along another prompt, whose nodes would not be computed with it.
    tree.seal()
    leaves = [leaf for leaf in planted.leaves for _ in range(draws or 1)]
    steps: list[list[tuple[int, int]]] = [[] for _ in leaves]
    texts = [""] * len(leaves)
    live = list(range(len(leaves)))
    for position in range(task.max_tokens):
        nodes = sorted({leaves[i] for i in live})
        logits = policy.logits(hidden_states(policy.model, tree, nodes, cache, extend=True))
        row = {node: index for index, node in enumerate(nodes)}
        drawn = _draw(
            logits.cpu(),
            [row[leaves[i]] for i in live],
            None if draws is None else generator or torch.default_generator,
        )
        for i, token in zip(live, drawn, strict=True):
            steps[i].append((leaves[i], token))
        live = [i for i in live if not _ends(policy, task, steps[i], texts, i)]
        if not live or position == task.max_tokens - 1:
            break
        for i in live:
            leaves[i] = tree.add([steps[i][-1][1]], leaves[i])
    return Rollout(planted, steps, texts)


def _draw(logits: torch.Tensor, rows: list[int], generator: torch.Generator | None) -> list[int]:
    """A token from each of the rows [answers] of logits [nodes, vocabulary], the likeliest without a generator.

    By the sums of the probabilities of a node, which its answers share: torch.multinomial draws a number for each
    token of the vocabulary, and took a third of a rollout's time.
    """
    if generator is None:
        likeliest = logits.argmax(-1).tolist()
        return [likeliest[row] for row in rows]
    sums = logits.softmax(-1).double().cumsum(-1)
    at = torch.rand(len(rows), dtype=torch.float64, generator=generator)
    # The first token whose sum is above the number: one of probability 0 is never it.
    return [
        int(torch.searchsorted(sums[row], number * sums[row, -1], right=True).clamp(max=sums.shape[1] - 1))
        for row, number in zip(rows, at, strict=True)
    ]


def _ends(policy: Policy, task: Task, steps: list[tuple[int, int]], texts: list[str], i: int) -> bool:
    """Whether an answer is at its end; keeps its text."""
    text = policy.tokenizer.decode([token for _, token in steps])
    texts[i], stopped = before_stop(text, task.stop)
    return stopped or steps[-1][1] in policy.tokenizer.eos_ids


def given(policy: Policy, task: Task, samples: list[Sample]) -> Rollout:
    """The samples' own answers as a rollout, closed by the end token where the task's answers are generated."""
    planted = policy.plant([sample.prompt for sample in samples])
    steps = []
    for sample, leaf in zip(samples, planted.leaves, strict=True):
        tokens = answer_ids(policy.tokenizer, sample.answer)
        if not task.labels:
            tokens += list(policy.tokenizer.eos_ids)[:1]
        nodes = [leaf]
        for token in tokens[:-1]:
            nodes.append(planted.tree.add([token], nodes[-1]))
        steps.append(list(zip(nodes, tokens, strict=True)))
    return Rollout(planted, steps, [sample.answer for sample in samples])
