"""Rotary position embedding, the halves of a head rotated against one another.

    low'[i]  = low[i]  cos[p, i] - high[i] sin[p, i]
    high'[i] = high[i] cos[p, i] + low[i]  sin[p, i]

    q [T, H, D]   k [T, G, D]   cos, sin [P, D / 2]   position [T]

in place, low and high being a head's first and last D / 2 values, as Hugging Face lays them out. Bytes:
queries and keys once in and once out. Source: RoFormer (arXiv 2104.09864), section 3.4.
"""

import torch
from torch import Tensor


def rope_ref(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position: Tensor) -> None:
    """Semantics: rotates q and k in place, in float32, rounded once."""
    c, s = cos[position.long()][:, None], sin[position.long()][:, None]  # [T, 1, D / 2]
    for x in (q, k):
        low, high = x.float().chunk(2, -1)
        x.copy_(torch.cat([low * c - high * s, high * c + low * s], -1))


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position: Tensor) -> None:
    """Semantics: rotates q and k in place by the angles of their positions.

    q: [tokens, heads, head_size], bf16 or float32; tokens may lie apart.
    k: [tokens, kv_heads, head_size], the same.
    cos, sin: [positions, head_size / 2], float32.
    position: [tokens], int32, 0 <= position < positions.
    Raises: RuntimeError on a wrong shape, stride, dtype or device, or a position outside the tables.
    """
    torch.ops.zweave.rope.default(q, k, cos, sin, position)
