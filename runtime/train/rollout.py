"""Rollouts: answers sampled from the current policy, or given, as branches of a prompt tree."""

from dataclasses import dataclass
from typing import TypeAlias

import torch

from ..tasks.render import answer_limit, target_tokens
from ..tasks.task import Sample, Task
from ..text.detokenizer import IncrementalDetokenizer, StopChecker
from .forward import hidden_states
from .policy import Policy, PromptTree

# The steps of an answer: the node that the token was drawn at, and the token.
Answer: TypeAlias = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Rollout:
    """Answers on a prompt tree.

    prompts: the tree, which holds the answers but for their last tokens.
    steps: of each answer, the end token included.
    texts: the answers as the reward reads them and the engine would show them, cut before the task's stop strings.
    """

    prompts: PromptTree
    steps: list[Answer]
    texts: list[str]


@torch.no_grad()
def sample_answers(
    policy: Policy,
    task: Task,
    samples: list[Sample],
    draws: int | None = None,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Samples answers at temperature 1, prompt after prompt.

    A forward pass reads the new nodes of all answers at once: equal beginnings are computed once.

    draws: answers of each prompt; None for one greedy answer.
    """
    prompts = policy.prefill([sample.prompt for sample in samples])
    tree, cache = prompts.tree, prompts.cache.copy()
    # Otherwise an answer could share nodes of another prompt, which are not computed with it.
    tree.seal()
    leaves = [leaf for leaf in prompts.leaves for _ in range(draws or 1)]
    steps: list[Answer] = [[] for _ in leaves]
    texts = [
        StopChecker(IncrementalDetokenizer(policy.tokenizer, context=[tree.tokens[leaf]]), task.stop)
        for leaf in leaves
    ]
    live = list(range(len(leaves)))
    limit = answer_limit(policy.tokenizer, task)
    for position in range(limit):
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
        live = [i for i, token in zip(live, drawn, strict=True) if not _ends(policy, texts[i], token)]
        if not live or position == limit - 1:
            break
        for i in live:
            leaves[i] = tree.add([steps[i][-1][1]], leaves[i])
    for i in live:
        texts[i].finish()
    return Rollout(prompts, steps, [text.shown for text in texts])


def _draw(logits: torch.Tensor, rows: list[int], generator: torch.Generator | None) -> list[int]:
    """Draws a token from each of the rows [answers] of logits [nodes, vocabulary]; greedily without a generator.

    It searches a node's cumulative probabilities, which its answers share: torch.multinomial draws a number for each
    token of the vocabulary, and took a third of a rollout's time.
    """
    if generator is None:
        likeliest = logits.argmax(-1).tolist()
        return [likeliest[row] for row in rows]
    sums = logits.softmax(-1).double().cumsum(-1)
    at = torch.rand(len(rows), dtype=torch.float64, generator=generator)
    # The first token whose cumulative probability is above the number: never one of probability 0.
    return [
        int(torch.searchsorted(sums[row], number * sums[row, -1], right=True).clamp(max=sums.shape[1] - 1))
        for row, number in zip(rows, at, strict=True)
    ]


def _ends(policy: Policy, text: StopChecker, token: int) -> bool:
    """Whether an answer ends with its next token, which is added to its text."""
    if token in policy.tokenizer.eos_ids:
        text.finish()
        return True
    return text.add(token)[1]


def teacher_forced(policy: Policy, task: Task, samples: list[Sample]) -> Rollout:
    """The samples' own answers as a rollout, as `target_tokens` has them."""
    prompts = policy.prefill([sample.prompt for sample in samples])
    targets = target_tokens(policy.tokenizer, task, [sample.answer for sample in samples])
    steps = [add_answer(prompts, leaf, tokens) for leaf, tokens in zip(prompts.leaves, targets, strict=True)]
    return Rollout(prompts, steps, [sample.answer for sample in samples])


def add_answer(prompts: PromptTree, leaf: int, tokens: list[int]) -> Answer:
    """Adds an answer below a prompt, shared with others that begin alike; returns its steps."""
    nodes = [leaf]
    for token in tokens[:-1]:
        nodes.append(prompts.tree.add([token], nodes[-1]))
    return list(zip(nodes, tokens, strict=True))
