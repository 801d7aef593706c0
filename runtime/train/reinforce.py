"""REINFORCE for short answers: one estimator for answers from a fixed list, one for generated text."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zweave.train.token_tree import TokenTree


def leave_one_out(reward: Tensor) -> Tensor:
    """Advantage [B, draws] of each draw over the mean of the prompt's other draws (Kool et al. 2019)."""
    draws = reward.shape[-1]
    return (reward - reward.mean(-1, keepdim=True)) * draws / (draws - 1)


def label_loss(
    logits: Tensor,
    labels: Tensor,
    target: Tensor,
    *,
    draws: int,
    entropy: float,
    mass: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Loss whose gradient estimates that of -(E[reward] + entropy · H + mass · log Σ p(label)).

    Policy, reward and entropy H are over the labels alone: a small model hardly ever says one unprompted, and
    would learn nothing. The last term makes it say them: without it another word stays above the right label.
    Half of the actions are drawn from the policy and half uniformly, weighted by their importance: a policy
    that has collapsed onto one label still hears of the others. The reward is 1 for the target and -1 else.

    logits: [B, vocabulary], float32
    labels: [K], int64, token ids
    target: [B], int64, index into labels
    draws: actions a prompt, at least 2
    """
    label_logits = logits[:, labels]
    log_policy = label_logits.log_softmax(-1)
    policy = log_policy.exp()
    with torch.no_grad():
        behaviour = 0.5 * policy + 0.5 / len(labels)
        action = torch.multinomial(behaviour, draws, replacement=True, generator=generator)
        importance = policy.gather(-1, action) / behaviour.gather(-1, action)
        reward = torch.where(action == target[:, None], 1.0, -1.0)
        baseline = importance * reward - leave_one_out(importance * reward)
        advantage = importance * (reward - baseline)
    score = (advantage * log_policy.gather(-1, action)).mean()
    entropy_bonus = -(policy * log_policy).sum(-1).mean()
    log_mass = (label_logits.logsumexp(-1) - logits.logsumexp(-1)).mean()
    return -(score + entropy * entropy_bonus + mass * log_mass)


@dataclass(frozen=True, slots=True)
class Generation:
    """Answers grown on a tree; a step of an answer is (the node it was drawn at, the token drawn).

    steps: for each answer its steps, the end token included; the last token drawn is not in the tree
    """

    tree: TokenTree
    steps: list[list[tuple[int, int]]]

    def tokens(self) -> list[list[int]]:
        return [[token for _, token in steps] for steps in self.steps]


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: list[list[int]],
    *,
    ends: Collection[int],
    max_tokens: int,
    generator: torch.Generator | None = None,
    samples: int | None = None,
) -> Generation:
    """Draws `samples` answers a prompt at temperature 1, prompt after prompt; one greedy answer when None.

    A forward pass reads the new nodes of all answers at once: equal beginnings are computed once.
    """
    from transformers import DynamicCache

    tree, cache = TokenTree(), DynamicCache()
    leaves = [tree.add(prompt) for prompt in prompts for _ in range(samples or 1)]
    steps: list[list[tuple[int, int]]] = [[] for _ in leaves]
    live = list(range(len(leaves)))
    hidden = tree.hidden(model, cache)
    for position in range(max_tokens):
        logits = model.get_submodule("lm_head")(hidden[[leaves[i] for i in live]]).float()
        if samples is None:
            drawn = logits.argmax(-1)
        else:
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        for i, token in zip(live, drawn.tolist(), strict=True):
            steps[i].append((leaves[i], token))
        live = [i for i in live if steps[i][-1][1] not in ends]
        if not live or position == max_tokens - 1:
            break
        for i in live:
            leaves[i] = tree.add([steps[i][-1][1]], leaves[i])
        if len(tree) > len(hidden):
            hidden = torch.cat([hidden, tree.hidden(model, cache, start=len(hidden))])
    return Generation(tree, steps)


def generation_loss(model: nn.Module, generation: Generation, advantage: Tensor) -> Tensor:
    """Loss whose gradient is -mean over the answers of advantage · ∇ log p(answer | prompt).

    advantage: [answers], float32
    """
    weights: dict[tuple[int, int], float] = {}
    for steps, weight in zip(generation.steps, advantage.tolist(), strict=True):
        for step in steps:
            weights[step] = weights.get(step, 0.0) + weight
    nodes = sorted({node for node, _ in weights})
    row = {node: i for i, node in enumerate(nodes)}
    hidden = generation.tree.hidden(model)[nodes]
    log_policy = model.get_submodule("lm_head")(hidden).float().log_softmax(-1)
    at = torch.tensor([row[node] for node, _ in weights])
    drawn = torch.tensor([token for _, token in weights])
    weight = torch.tensor(list(weights.values()))
    return -(weight * log_policy[at, drawn]).sum() / len(generation.steps)


def text_reward(generation: Generation, answers: list[str], decode: Callable[[list[int]], str]) -> Tensor:
    """1 for each generated text that equals its answer but for white space, else -1: [answers]."""
    texts = [decode(tokens) for tokens in generation.tokens()]
    return torch.tensor(
        [1.0 if t.strip() == a.strip() else -1.0 for t, a in zip(texts, answers, strict=True)]
    )
