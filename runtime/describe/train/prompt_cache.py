"""Keys and values of prompts as the base model computes them: once for all experts and descriptions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...train.forward import TreeCache, hidden_states
from ...train.token_tree import TokenTree

_BATCH = 16


@dataclass(frozen=True, slots=True)
class CachedPrompt:
    """A prompt up to where its expert begins to act.

    ids: its tokens.
    states: [layers, 2, tokens, G, D], keys and values.
    """

    ids: tuple[int, ...]
    states: Tensor


class PromptCache:
    """The prompts that were computed, by their tokens.

    model: whose linears compute the base model's outputs while this calls it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[tuple[int, ...], CachedPrompt] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, prompts: Sequence[Sequence[int]]) -> list[CachedPrompt]:
        """The prompts with their keys and values; those that are missing are computed."""
        keys = [tuple(ids) for ids in prompts]
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        for start in range(0, len(missing), _BATCH):
            self._compute(missing[start : start + _BATCH])
        return [self._known[key] for key in keys]

    @torch.no_grad()
    def _compute(self, prompts: Sequence[tuple[int, ...]]) -> None:
        tree, cache = TokenTree(), TreeCache()
        leaves = [tree.add(ids) for ids in prompts]
        hidden_states(self._model, tree, leaves[-1:], cache, extend=True)
        for ids, leaf in zip(prompts, leaves, strict=True):
            path = torch.tensor(tree.path(leaf))
            states = torch.stack([torch.stack([k[path], v[path]]) for k, v in cache.layers])
            self._known[ids] = CachedPrompt(ids, states)


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
