"""The forward pass of training: token trees through transformers models, with no more rows than the loss needs.

transformers supplies the modules; the pass itself is written here so that linears see all prompts as one batch of
rows, attention stays within a prompt, and the last layer's MLP runs for the wanted nodes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .joint.linear import joint_linear
from .token_tree import TokenTree
from .tree_attention import Layout, tree_attention

Pair: TypeAlias = tuple[Tensor, Tensor]


@dataclass(slots=True)
class TreeCache:
    """Keys and values [nodes, G, D] of a tree's first `length` nodes, one pair for each layer."""

    layers: list[Pair] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.layers[0][0]) if self.layers else 0

    def copy(self) -> "TreeCache":
        return TreeCache(list(self.layers))


@dataclass(frozen=True, slots=True)
class Part:
    """The nodes of one tree in a forward pass.

    model: a Llama, Mistral, Qwen2 or Qwen3 of transformers, its linears replaced or not.
    nodes: whose states are wanted; all that are not cached are computed.
    cache: keys and values of the tree's first nodes.
    extend: add those of the computed nodes to the cache.
    """

    model: nn.Module
    tree: TokenTree
    nodes: Sequence[int]
    cache: TreeCache
    extend: bool = False

    @property
    def rows(self) -> int:
        return len(self.tree) - self.cache.length


def hidden_states(
    model: nn.Module, tree: TokenTree, nodes: Sequence[int], cache: TreeCache, extend: bool = False
) -> Tensor:
    """Final hidden states [nodes, hidden], after the last norm, of nodes that are not cached; see `Part`."""
    return joint_hidden_states([Part(model, tree, nodes, cache, extend)])[0]


def joint_hidden_states(parts: Sequence[Part]) -> list[Tensor]:
    """Final hidden states of each part, [nodes, hidden], in one pass over the weights that their models share.

    The models differ in their adapters alone: what no adapter stands for is taken from the first.
    """
    inner = [part.model.get_submodule("model") for part in parts]
    device = next(parts[0].model.parameters()).device
    rows, starts = [part.rows for part in parts], [part.cache.length for part in parts]
    layouts = [Layout.of(part.tree, start, device) for part, start in zip(parts, starts, strict=True)]
    tokens = [token for part, start in zip(parts, starts, strict=True) for token in part.tree.tokens[start:]]
    x = inner[0].get_submodule("embed_tokens")(torch.tensor(tokens, device=device))
    tables = [
        _rotary(inner[0], x, part.tree.depths[start:]) for part, start in zip(parts, starts, strict=True)
    ]
    cos, sin = (_joined(table) for table in zip(*tables, strict=True))
    layers = list(zip(*(model.get_submodule("layers").children() for model in inner), strict=True))
    for index, layer in enumerate(layers):
        past = [
            part.cache.layers[index] if start else None for part, start in zip(parts, starts, strict=True)
        ]
        attended, pairs = _attention(layer, x, rows, cos, sin, layouts, past)
        for part, pair in zip(parts, pairs, strict=True):
            if part.extend:
                part.cache.layers[index : index + 1] = [pair]
        if index == len(layers) - 1:
            wanted = torch.tensor(_wanted(parts, starts, rows), device=device)
            attended, x, rows = attended[wanted], x[wanted], [len(part.nodes) for part in parts]
        x = x + _linear(layer, "self_attn.o_proj", attended, rows)
        x = x + _mlp(layer, layer[0].get_submodule("post_attention_layernorm")(x), rows)
    return _split(inner[0].get_submodule("norm")(x), rows)


def _rotary(inner: nn.Module, x: Tensor, depths: Sequence[int]) -> Pair:
    """cos and sin [rows, 1, D]."""
    depth = torch.tensor([depths], device=x.device)
    cos, sin = (table.view(len(depths), 1, -1) for table in inner.get_submodule("rotary_emb")(x, depth))
    return cos, sin


def _wanted(parts: Sequence[Part], starts: Sequence[int], rows: Sequence[int]) -> list[int]:
    """The rows of the wanted nodes."""
    wanted, first = [], 0
    for part, start, count in zip(parts, starts, rows, strict=True):
        wanted += [first + node - start for node in part.nodes]
        first += count
    return wanted


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(pieces)) if len(pieces) > 1 else pieces[0]


def _split(x: Tensor, rows: Sequence[int]) -> list[Tensor]:
    return list(x.split(list(rows))) if len(rows) > 1 else [x]


def _linear(layers: Sequence[nn.Module], name: str, x: Tensor, rows: Sequence[int]) -> Tensor:
    return joint_linear([layer.get_submodule(name) for layer in layers], x, rows)


def _attention(
    layers: Sequence[nn.Module],
    x: Tensor,
    rows: Sequence[int],
    cos: Tensor,
    sin: Tensor,
    layouts: Sequence[Layout],
    past: Sequence[Pair | None],
) -> tuple[Tensor, list[Pair]]:
    """Attention before its output projection, and the keys and values of all nodes of each part."""
    attention = layers[0].get_submodule("self_attn")
    x = layers[0].get_submodule("input_layernorm")(x)
    shape = (len(x), -1, cos.shape[-1])
    q, k, v = (_linear(layers, f"self_attn.{name}_proj", x, rows).view(shape) for name in "qkv")
    if hasattr(attention, "q_norm"):
        q, k = attention.get_submodule("q_norm")(q), attention.get_submodule("k_norm")(k)
    q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
    attended, pairs = [], []
    for q_i, k_i, v_i, layout, before in zip(
        _split(q, rows), _split(k, rows), _split(v, rows), layouts, past, strict=True
    ):
        pair = (k_i, v_i) if before is None else (torch.cat([before[0], k_i]), torch.cat([before[1], v_i]))
        attended.append(tree_attention(q_i, *pair, layout).flatten(1))
        pairs.append(pair)
    return _joined(attended), pairs


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def _mlp(layers: Sequence[nn.Module], x: Tensor, rows: Sequence[int]) -> Tensor:
    gate, up = (_linear(layers, f"mlp.{name}_proj", x, rows) for name in ("gate", "up"))
    # Part by part: the last few elements of a tensor, and of a thread's share of it, may be rounded in another way.
    gate = _joined([F.silu(piece) for piece in _split(gate, rows)])
    return _linear(layers, "mlp.down_proj", gate * up, rows)
