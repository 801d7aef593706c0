"""The model as it learns: prompts planted in a tree, and the hidden states of their nodes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ZweaveError
from ..experts.expert import Scope
from ..tasks.render import prompt_ids
from ..text.tokenizer import Tokenizer
from .adapter import Adapter
from .forward import TreeCache, hidden_states
from .token_tree import TokenTree


@dataclass(slots=True)
class Planted:
    """Prompts in a tree: the last node of each, and what is computed of them once, without gradient."""

    tree: TokenTree
    leaves: list[int]
    cache: TreeCache


@dataclass(frozen=True, slots=True)
class Policy:
    """A frozen model under an adapter.

    scope: "always", or "after_prompt": the prompt up to its last chat header is the base model's, read without
        gradient, and only what follows is adapted.
    max_length: tokens that a sequence may have
    """

    model: nn.Module
    adapter: Adapter
    tokenizer: Tokenizer
    scope: Scope = "always"
    max_length: int = 2**31

    def plant(self, prompts: Sequence[str]) -> Planted:
        """Tokenizes prompts as the engine does; ZweaveError for an empty one and one that is too long."""
        tokens = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        for prompt, ids in zip(prompts, tokens, strict=True):
            if not 0 < len(ids) < self.max_length:
                raise ZweaveError(
                    f"the prompt {prompt[:40]!r} has {len(ids)} tokens: it must have 1 to {self.max_length - 1}"
                )
        planted = Planted(TokenTree(), [], TreeCache())
        if self.scope == "always":
            planted.leaves = [planted.tree.add(ids) for ids in tokens]
            return planted
        starts = [self.tokenizer.after_prompt_start(ids) for ids in tokens]
        before = [planted.tree.add(ids[:at]) for ids, at in zip(tokens, starts, strict=True)]
        if len(planted.tree):
            with torch.no_grad(), self.adapter.base():
                hidden_states(self.model, planted.tree, [len(planted.tree) - 1], planted.cache, extend=True)
        planted.tree.seal()
        planted.leaves = [
            planted.tree.add(ids[at:], node) for ids, at, node in zip(tokens, starts, before, strict=True)
        ]
        return planted

    def hidden(self, planted: Planted, nodes: Sequence[int]) -> Tensor:
        """Final hidden states [nodes, hidden] of adapted nodes, with gradient where it is enabled."""
        return hidden_states(self.model, planted.tree, nodes, planted.cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [nodes, vocabulary]; ZweaveError when they are not finite."""
        logits = self.model.get_submodule("lm_head")(hidden).float()
        # NaN and infinity last in a sum.
        if not logits.detach().sum().isfinite():
            raise ZweaveError("the model's logits are not finite: lower the learning rate")
        return logits
