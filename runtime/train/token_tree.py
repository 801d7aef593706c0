"""Many token sequences in one row: shared prefixes are computed once, a mask keeps the branches apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ROOT = -1


@dataclass(slots=True)
class TokenTree:
    """A trie of token ids; node `i` sees itself and its ancestors, and stands at its depth as position.

    Nodes are numbered in the order in which they are added, so a parent comes before its children.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Sequence[int], node: int = ROOT) -> int:
        """Adds a path below `node` (which existing nodes are part of) and returns its last node."""
        for token in tokens:
            child = self.children.get((node, token))
            if child is None:
                child = self.children[node, token] = len(self.tokens)
                self.depths.append(0 if node == ROOT else self.depths[node] + 1)
                self.tokens.append(token)
                self.parents.append(node)
            node = child
        return node

    def visible(self) -> Tensor:
        """bool [nodes, nodes]: row `i` is true at `i` and at its ancestors."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != ROOT:
                seen[node] |= seen[parent]
        return seen

    def hidden(self, model: nn.Module, cache: object | None = None, start: int = 0) -> Tensor:
        """Final hidden states [nodes - start, hidden] of the nodes from `start` on.

        model: a transformers causal language model whose attention takes an additive 4-D mask.
        cache: a transformers `Cache` that holds exactly the nodes before `start`; it is extended.
        """
        visible = self.visible()[start:]
        dtype = next(model.parameters()).dtype
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        output = model.get_submodule("model")(
            input_ids=torch.tensor([self.tokens[start:]]),
            position_ids=torch.tensor([self.depths[start:]]),
            attention_mask=mask[None, None],
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state[0]
