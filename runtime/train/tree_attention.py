"""Attention over a token tree: every branch of the tree by itself, all branches as one padded batch.

    out[i] = sum over node i and its ancestors j of softmax_j(q[i] . k[j] / sqrt(D)) v[j]

q [T, H, D]   k, v [C + T, G, D]   ->   out [T, H, D]       C nodes are cached, T are new

A mask over all nodes would make the work quadratic in the batch. The branches share only the trunk, the nodes that
all others descend from (the opening words of a prompt): a branch attends to the trunk and to itself. The backward pass
is written here: on a CPU that of torch's fused attention took three times as long at 60 tokens a branch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the nodes lie in the padded batch of B branches, the trunk one of them, Q queries and K keys each.

    query: [B * Q], the row of q at each place; padding points to row 0.
    key: [B * K], the row of k at each place; padding points to row 0.
    visible: bool [B, Q, K]; a padded query attends to row 0 alone, so that no softmax is empty.
    query_at: [T], place of each new node among the queries.
    key_at: [T], its place among the keys.
    trunk: rows of q of the trunk's new nodes.
    trunk_key: the columns of their keys in every branch.
    """

    query: Tensor
    key: Tensor
    visible: Tensor
    query_at: Tensor
    key_at: Tensor
    trunk: Tensor
    trunk_key: Tensor

    @classmethod
    def of(cls, tree: TokenTree, start: int, device: torch.device | str = "cpu") -> "Layout":
        """The layout of the nodes from `start` on; those before are cached."""
        trunk = tree.trunk()
        branches = [nodes for nodes in tree.branches() if nodes[-1] >= start]
        parts = ([(trunk, 0)] if trunk and trunk[-1] >= start else []) + [
            (trunk + nodes, len(trunk)) for nodes in branches
        ]
        queries = [[i for i in range(own, len(keys)) if keys[i] >= start] for keys, own in parts]
        shape = (len(parts), max(map(len, queries), default=0), max((len(k) for k, _ in parts), default=0))
        query, key = np.zeros(shape[:2], np.int64), np.zeros((shape[0], shape[2]), np.int64)
        visible = np.zeros(shape, np.bool_)
        visible[:, :, 0] = True
        query_at, key_at = np.zeros((2, len(tree) - start), np.int64)
        for b, ((keys, _), rows) in enumerate(zip(parts, queries, strict=True)):
            nodes = np.array(keys)
            new = nodes[rows] - start
            query[b, : len(rows)] = new
            key[b, : len(keys)] = nodes
            visible[b, : len(rows), : len(keys)] = tree.visible(keys)[rows]
            query_at[new] = b * shape[1] + np.arange(len(rows))
            key_at[new] = b * shape[2] + np.array(rows, np.int64)
        new_trunk = [i for i, node in enumerate(trunk) if node >= start]
        arrays = (
            query.ravel(), key.ravel(), visible, query_at, key_at,
            np.array([trunk[i] - start for i in new_trunk], np.int64), np.array(new_trunk, np.int64),
        )  # fmt: skip
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


def tree_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Semantics: see the module. q: [T, H, D]; k, v: [C + T, G, D], H a multiple of G. Returns [T, H, D].

    Differentiable in q and in the last T rows of k and v; cached rows get no gradient.
    """
    return _TreeAttention.apply(q, k, v, layout)


def _heads(x: Tensor, at: Tensor, batch: int, groups: int) -> Tensor:
    """Rows of x [rows, heads, D] at [batch * n] to [batch * groups, heads / groups * n, D]."""
    heads, size = x.shape[1] // groups, x.shape[2]
    gathered = x[at].view(batch, -1, groups, heads, size)
    return gathered.permute(0, 2, 3, 1, 4).reshape(batch * groups, -1, size)


def _rows(x: Tensor, batch: int, groups: int, heads: int) -> Tensor:
    """The inverse of `_heads` but for the gather: [batch * n, heads of all groups, D]."""
    size = x.shape[2]
    split = x.view(batch, groups, heads // groups, -1, size)
    return split.permute(0, 3, 1, 2, 4).reshape(-1, heads, size)


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        (batch, queries, keys), (_, heads, size), groups = layout.visible.shape, q.shape, k.shape[1]
        q_b = _heads(q, layout.query, batch, groups)
        k_b, v_b = _heads(k, layout.key, batch, groups), _heads(v, layout.key, batch, groups)
        scores = torch.bmm(q_b, k_b.transpose(1, 2)).view(batch, -1, queries, keys).float()
        scores = scores.mul_(size**-0.5).masked_fill_(~layout.visible[:, None], float("-inf"))
        weights = scores.softmax(-1).to(q.dtype).view(batch * groups, -1, keys)
        out = torch.bmm(weights, v_b)
        ctx.layout, ctx.shape = layout, (q.shape, k.shape)
        ctx.save_for_backward(q_b, k_b, v_b, weights, out)
        return _rows(out, batch, groups, heads)[layout.query_at]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_b, k_b, v_b, weights, out = ctx.saved_tensors
        layout: Layout = ctx.layout
        (new, heads, size), (total, groups, _) = ctx.shape
        batch, queries, _ = layout.visible.shape
        # Padding has no gradient: only places of nodes are filled.
        padded = torch.zeros(batch * queries, heads, size, dtype=grads[0].dtype, device=grads[0].device)
        padded[layout.query_at] = grads[0]
        everywhere = torch.arange(batch * queries, device=padded.device)
        d_out = _heads(padded, everywhere, batch, groups)
        d_v = torch.bmm(weights.transpose(1, 2), d_out)
        inner = (d_out.float() * out.float()).sum(-1, keepdim=True)
        d_weights = torch.bmm(d_out, v_b.transpose(1, 2)).float()
        d_scores = (d_weights.sub_(inner).mul_(weights).mul_(size**-0.5)).to(weights.dtype)
        d_q = _rows(torch.bmm(d_scores, k_b), batch, groups, heads)[layout.query_at]
        d_k = torch.bmm(d_scores.transpose(1, 2), q_b)
        return d_q, *(_key_grad(d, layout, groups, total, new) for d in (d_k, d_v)), None


def _key_grad(grad: Tensor, layout: Layout, groups: int, total: int, new: int) -> Tensor:
    """[B * G, K, D] to [C + T, G, D]: a node's own place, and for the trunk the sum over the branches."""
    batch = layout.visible.shape[0]
    rows = _rows(grad, batch, groups, groups)
    result = torch.zeros(total, groups, grad.shape[2], dtype=grad.dtype, device=grad.device)
    result[total - new :] = rows[layout.key_at]
    if layout.trunk.numel():
        columns = rows.view(batch, -1, groups, grad.shape[2])[:, layout.trunk_key]
        result[total - new + layout.trunk] = columns.float().sum(0).to(grad.dtype)
    return result
