"""The forward pass of training: a token tree through a transformers model, with no more rows than the loss needs.

transformers supplies the modules; the pass itself is written here so that linears see all prompts as one batch of
rows, attention stays within a prompt, and the last layer's MLP runs for the wanted nodes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


def hidden_states(
    model: nn.Module, tree: TokenTree, nodes: Sequence[int], cache: TreeCache, extend: bool = False
) -> Tensor:
    """Final hidden states [nodes, hidden], after the last norm, of nodes that are not cached.

    model: a Llama, Mistral, Qwen2 or Qwen3 of transformers, its linears replaced or not.
    nodes: whose states are returned; all that are not cached are computed.
    cache: keys and values of the tree's first nodes.
    extend: add those of the computed nodes to the cache.
    """
    inner, start = model.get_submodule("model"), cache.length
    device = next(model.parameters()).device
    layout = Layout.of(tree, start, device)
    x = inner.get_submodule("embed_tokens")(torch.tensor(tree.tokens[start:], device=device))
    depth = torch.tensor([tree.depths[start:]], device=device)
    cos, sin = (table.view(len(x), 1, -1) for table in inner.get_submodule("rotary_emb")(x, depth))
    layers = list(inner.get_submodule("layers").children())
    wanted = torch.tensor(nodes, device=device) - start
    for index, layer in enumerate(layers):
        past = cache.layers[index] if start else None
        attended, pair = _attention(layer, x, cos, sin, layout, past)
        if extend:
            cache.layers[index : index + 1] = [pair]
        if index == len(layers) - 1:
            attended, x = attended[wanted], x[wanted]
        x = x + layer.get_submodule("self_attn.o_proj")(attended)
        x = x + _mlp(layer.get_submodule("mlp"), layer.get_submodule("post_attention_layernorm")(x))
    return inner.get_submodule("norm")(x)


def _attention(
    layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, past: Pair | None
) -> tuple[Tensor, Pair]:
    """Attention before its output projection, and the keys and values of all nodes."""
    attention = layer.get_submodule("self_attn")
    x = layer.get_submodule("input_layernorm")(x)
    shape = (len(x), -1, cos.shape[-1])
    q, k, v = (attention.get_submodule(f"{name}_proj")(x).view(shape) for name in "qkv")
    if hasattr(attention, "q_norm"):
        q, k = attention.get_submodule("q_norm")(q), attention.get_submodule("k_norm")(k)
    q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
    if past is not None:
        k, v = torch.cat([past[0], k]), torch.cat([past[1], v])
    return tree_attention(q, k, v, layout).flatten(1), (k, v)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def _mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    gate, up = mlp.get_submodule("gate_proj")(x), mlp.get_submodule("up_proj")(x)
    return mlp.get_submodule("down_proj")(F.silu(gate) * up)
