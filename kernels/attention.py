"""Attention over a paged key-value cache.

    y[t, h] = sum over j of softmax_j(scale q[t, h] . k[j]) v[j],   max(0, p - window + 1) <= j <= p

    q [T, H, D]   k_cache, v_cache of blocks as in layout/kv_layout.py   block_table [B, n]   ->   y [T, H, D]

where p is the token's position, j a position of its sequence, and head h reads key-value head h / (H / G).
Position j lies in block block_table[sequence, j / block_size] at j % block_size. A step of decoding and a
chunk of a prompt are the same call: keys and values are in the cache (`write_kv`) before their queries ask
for them. Bytes: the keys and values of each sequence once, for decoding; FLOPs: 4 D a query head and key.

On a CPU the kernel is C++: csrc/cpu/attention, of which attention.h is the start. On CUDA each token is a row of
decode_attention.py; chunks of prompts have a kernel of their own in prefill_attention.py. See
docs/kernels/attention.md.
"""

import torch
from torch import Tensor

from .layout.kv_layout import block_size, read_kv, store_kv


def write_kv_ref(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, index: Tensor) -> None:
    """Semantics: stores k[t] and v[t] in block index[t] / block_size at offset index[t] % block_size."""
    size = block_size(k_cache, v_cache)
    store_kv(k, v, k_cache, v_cache, index // size, index % size)


def paged_attention_ref(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    sequence: Tensor,
    position: Tensor,
    scale: float,
    window: int = 0,
) -> Tensor:
    """Semantics: gathers each token's keys and values, softmax in float32, rounded once."""
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    heads_per_kv, size = q.shape[1] // k_cache.shape[1], block_size(k_cache, v_cache)
    for t, (row, last) in enumerate(zip(sequence.tolist(), position.tolist(), strict=True)):
        first = max(0, last + 1 - window) if window else 0
        j = torch.arange(first, last + 1, device=q.device)
        block, offset = block_table[row].long()[j // size], j % size
        k, v = read_kv(k_cache, v_cache, block, offset, q.shape[2])
        k, v = (x.float().repeat_interleave(heads_per_kv, 1) for x in (k, v))  # [keys, H, D]
        score = torch.einsum("hd,jhd->hj", q[t].float(), k) * scale
        y[t] = torch.einsum("hj,jhd->hd", score.softmax(-1), v).to(q.dtype)
    return y


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, index: Tensor) -> None:
    """Semantics: stores each token's keys and values at its place in the cache.

    k, v: [tokens, kv_heads, head_size], bf16 or float32; tokens may lie apart.
    k_cache, v_cache: as `empty_kv` makes them, contiguous, k's dtype.
    index: [tokens], int64, block * block_size + offset.
    Raises: RuntimeError on a wrong shape, stride, dtype or device, or a place outside the cache.
    """
    torch.ops.zweave.write_kv.default(k, v, k_cache, v_cache, index)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    sequence: Tensor,
    position: Tensor,
    scale: float,
    window: int = 0,
) -> Tensor:
    """Semantics: causal attention of each token over its own sequence, softmax in float32.

    q: [tokens, heads, head_size], bf16 or float32; tokens may lie apart.
    k_cache, v_cache: as `empty_kv` makes them, contiguous, q's dtype; heads is a multiple of kv_heads.
    block_table: [sequences, n], int32; only entries that hold positions which are asked for are read.
    sequence: [tokens], int32, a token's row of block_table.
    position: [tokens], int32; the token sees positions 0 to position of its sequence.
    window: when positive, only the last `window` of these.
    Returns [tokens, heads, head_size] in q's dtype.
    Raises: RuntimeError on a wrong shape, stride, dtype or device, or an index outside its range.
    """
    return torch.ops.zweave.paged_attention.default(
        q, k_cache, v_cache, block_table, sequence, position, scale, window
    )
