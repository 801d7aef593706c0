"""What the base model computes of a prompt: once for all experts and descriptions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...train.forward import TreeCache, hidden_states
from ...train.token_tree import TokenTree
from .halves import halves

_BATCH = 16


@dataclass(frozen=True, slots=True)
class CachedPrompt:
    """A prompt up to where its expert begins to act, and what follows it.

    ids: its tokens.
    states: [layers from the first one that experts change, 2, tokens, G, D], keys and values.
    entering: [tokens that follow, hidden], their states as they enter that layer.
    """

    ids: tuple[int, ...]
    states: Tensor
    entering: Tensor


class PromptCache:
    """The prompts that were computed, by their tokens and those that follow.

    model: whose linears compute the base model's outputs while `of` calls it.
    first_layer: that experts change.
    upper: the layers from it on, which start from `enter`.
    """

    def __init__(self, model: nn.Module, first_layer: int = 0) -> None:
        self._lower, self.upper, self._entering = halves(model, first_layer)
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], CachedPrompt] = {}

    def __len__(self) -> int:
        return len(self._known)

    def clear(self) -> None:
        """Forgets all prompts."""
        self._known.clear()

    def enter(self, states: Tensor) -> None:
        """Sets what the next pass of `upper` starts from: [rows, hidden]."""
        self._entering.states = states

    def of(self, prompts: Sequence[Sequence[int]], following: Sequence[Sequence[int]]) -> list[CachedPrompt]:
        """The prompts, each before the tokens that follow it; those that are missing are computed."""
        keys = [(tuple(ids), tuple(rest)) for ids, rest in zip(prompts, following, strict=True)]
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        for start in range(0, len(missing), _BATCH):
            self._compute(missing[start : start + _BATCH])
        return [self._known[key] for key in keys]

    @torch.no_grad()
    def _compute(self, keys: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        tree, cache = TokenTree(), TreeCache()
        leaves = [tree.add([*ids, *rest]) for ids, rest in keys]
        entering = hidden_states(self._lower, tree, range(len(tree)), TreeCache())
        self.enter(entering)
        hidden_states(self.upper, tree, leaves[-1:], cache, extend=True)
        for (ids, rest), leaf in zip(keys, leaves, strict=True):
            path = torch.tensor(tree.path(leaf), device=entering.device)
            own = path[: len(ids)]
            states = torch.stack([torch.stack([k[own], v[own]]) for k, v in cache.layers])
            self._known[ids, rest] = CachedPrompt(ids, states, entering[path[len(ids) :]])


def joined(prompts: Sequence[CachedPrompt]) -> tuple[TokenTree, list[int], TreeCache]:
    """Prompts side by side, the last node of each, and the keys and values of all nodes.

    They share no node, not even at their beginning: attention is padded to the largest branch of a tree, and a branch
    is then one prompt.
    """
    tree, leaves = TokenTree(), []
    for prompt in prompts:
        leaves.append(tree.add(prompt.ids))
        tree.seal()
    states = torch.cat([prompt.states for prompt in prompts], 2)
    return tree, leaves, TreeCache([(layer[0], layer[1]) for layer in states])
