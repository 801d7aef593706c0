"""The policy: a frozen model under a trainable adapter, run on trees of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ZweaveError
from ..experts.expert import Scope
from ..tasks.render import prompt_ids
from ..text.tokenizer import Tokenizer
from .adapter import Adapter
from .forward import Part, TreeCache, hidden_states, joint_hidden_states
from .token_tree import TokenTree


@dataclass(slots=True)
class PromptTree:
    """Prompts in one token tree.

    tree: the tokens.
    leaves: the last node of each prompt.
    cache: keys and values of the nodes that need no gradient, computed once.
    """

    tree: TokenTree
    leaves: list[int]
    cache: TreeCache


@dataclass(frozen=True, slots=True)
class Policy:
    """A frozen model under an adapter.

    scope: "always", or "after_prompt": the base model reads the prompt up to its last chat header, without gradient,
        and only what follows is adapted.
    max_length: the most tokens of a sequence.
    """

    model: nn.Module
    adapter: Adapter
    tokenizer: Tokenizer
    scope: Scope = "always"
    max_length: int = 2**31

    def prefill(self, prompts: Sequence[str]) -> PromptTree:
        """Tokenizes prompts as the engine does and computes what needs no gradient.

        Raises ZweaveError for an empty prompt and one that is too long.
        """
        tokens = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        for prompt, ids in zip(prompts, tokens, strict=True):
            if not 0 < len(ids) < self.max_length:
                raise ZweaveError(
                    f"the prompt {prompt[:40]!r} has {len(ids)} tokens: it must have 1 to {self.max_length - 1}"
                )
        tree, cache = TokenTree(), TreeCache()
        if self.scope == "always":
            return PromptTree(tree, [tree.add(ids) for ids in tokens], cache)
        starts = [self.tokenizer.after_prompt_start(ids) for ids in tokens]
        before = [tree.add(ids[:at]) for ids, at in zip(tokens, starts, strict=True)]
        if len(tree):
            with torch.no_grad(), self.adapter.base():
                hidden_states(self.model, tree, [len(tree) - 1], cache, extend=True)
        tree.seal()
        leaves = [tree.add(ids[at:], node) for ids, at, node in zip(tokens, starts, before, strict=True)]
        return PromptTree(tree, leaves, cache)

    def hidden(self, prompts: PromptTree, nodes: Sequence[int]) -> Tensor:
        """Final hidden states [nodes, hidden] of adapted nodes, with gradient where it is enabled."""
        return joint_hidden_states([self.part(prompts, nodes)])[0]

    def part(self, prompts: PromptTree, nodes: Sequence[int]) -> Part:
        """The same as a part of a pass with other policies over the same frozen weights."""
        return Part(self.model, prompts.tree, nodes, prompts.cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [nodes, vocabulary]; ZweaveError when they are not finite."""
        logits = self.model.get_submodule("lm_head")(hidden).float()
        # A sum is not finite if one of its terms is not.
        if not logits.detach().sum().isfinite():
            raise ZweaveError("the model's logits are not finite: lower the learning rate")
        return logits
