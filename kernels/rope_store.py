"""Rotary embedding of queries and keys, and storing keys and values in the cache.

    q[t, h]                          = rope(norm_q(q[t, h]), position[t])
    k_cache[block, g, offset]        = rope(norm_k(k[t, g]), position[t])
    v_cache[block, g, offset]        = v[t, g]        block, offset = divmod(kv_index[t], block_size)

    q [T, H, D]   k, v [T, G, D]   cos, sin [P, D / 2]   k_cache, v_cache [blocks, G, block_size, D]

q in place; k and v stay. The norms are per head, of the models that have them (Qwen3), else absent. One launch instead
of `rms_norm`, `rope` and `write_kv`. Bytes: q, k and v once in and once out. Source: RoFormer (arXiv 2104.09864),
section 3.4; for halves against one another see rope.py. See docs/kernels/layer.md.
"""

import torch
from torch import Tensor

from .triton.checks import TRITON_DTYPES, check_device, check_tensor, on_device_of
from .triton.optional_triton import tl, triton
from .triton.pdl import launch_options, wait_at_start

# Heads of a program: few enough that a step of one token has several programs.
BLOCK_H = 4


def rope_store_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    kv_index: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Semantics: norm and rotation in float32, rounded once; arguments as in `rope_store_triton`."""
    place = position.clamp(min=0).long()
    c, s = cos[place][:, None], sin[place][:, None]  # [T, 1, D / 2]
    q.copy_(torch.where((position >= 0)[:, None, None], _rotated(q, c, s, q_norm, eps).to(q.dtype), q))
    # A padding row's index is stale and must not be followed.
    used = position >= 0
    block, offset = kv_index[used] // k_cache.shape[2], kv_index[used] % k_cache.shape[2]
    k_cache[block, :, offset] = _rotated(k, c, s, k_norm, eps).to(k.dtype)[used]
    v_cache[block, :, offset] = v[used]


def _rotated(x: Tensor, c: Tensor, s: Tensor, norm: Tensor | None, eps: float) -> Tensor:
    wide = x.float()
    if norm is not None:
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * norm.float()
    low, high = wide.chunk(2, -1)
    return torch.cat([low * c - high * s, high * c + low * s], -1)


@triton.jit
def _rotate(
    source: tl.tensor,
    target: tl.tensor,
    norm: tl.tensor,
    eps: tl.tensor,
    c: tl.tensor,
    s: tl.tensor,
    i: tl.tensor,
    mask: tl.tensor,
    D: tl.constexpr,
) -> None:
    """Stores the rotated heads.

    source, target: where they begin, [BLOCK_H, 1].
    i: components of a half, [1, BLOCK_D].
    """
    low = tl.load(source + i, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(source + D // 2 + i, mask=mask, other=0.0).to(tl.float32)
    if norm is not None:
        scale = tl.rsqrt(tl.sum(low * low + high * high, axis=1) / D + eps)[:, None]
        low = low * scale * tl.load(norm + i, mask=i < D // 2, other=0.0).to(tl.float32)
        high = high * scale * tl.load(norm + D // 2 + i, mask=i < D // 2, other=0.0).to(tl.float32)
    tl.store(target + i, (low * c - high * s).to(target.dtype.element_ty), mask=mask)
    tl.store(target + D // 2 + i, (high * c + low * s).to(target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["P"])
def _rope_store_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    position: tl.tensor,
    kv_index: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    eps: tl.tensor,
    P: tl.tensor,
    stride_q: tl.tensor,
    stride_k: tl.tensor,
    stride_v: tl.tensor,
    stride_block: tl.tensor,
    stride_head: tl.tensor,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """Some heads of one token: of the queries, or, after these, of the keys and values."""
    wait_at_start(PDL)
    t = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    p = tl.load(position + t).to(tl.int64)
    if p >= 0:
        head = tl.arange(0, BLOCK_H)[:, None]
        i = tl.arange(0, BLOCK_D)[None, :]
        in_table = i < tl.where(p < P, D // 2, 0)
        c = tl.load(cos + p * (D // 2) + i, mask=in_table, other=float("nan"))
        s = tl.load(sin + p * (D // 2) + i, mask=in_table, other=float("nan"))
        query_parts: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
        if part < query_parts:
            head += part * BLOCK_H
            rows = q + t * stride_q + head * D
            _rotate(rows, rows, q_norm, eps, c, s, i, (head < H) & (i < D // 2), D)
        else:
            head += (part - query_parts) * BLOCK_H
            mask = (head < G) & (i < D // 2)
            index = tl.load(kv_index + t)
            place = (
                index // BLOCK_SIZE * stride_block + index % BLOCK_SIZE * D + head.to(tl.int64) * stride_head
            )
            _rotate(k + t * stride_k + head * D, k_cache + place, k_norm, eps, c, s, i, mask, D)
            values = v + t * stride_v + head * D
            tl.store(v_cache + place + i, tl.load(values + i, mask=mask), mask=mask)
            tl.store(v_cache + place + D // 2 + i, tl.load(values + D // 2 + i, mask=mask), mask=mask)


def rope_store_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    kv_index: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Launches on a CUDA device (or in Triton's interpreter, on CPU tensors).

    q: [tokens, heads, head_size], bf16, float16 or float32; tokens may lie apart, heads not; rotated in place.
    k, v: [tokens, kv_heads, head_size], the same.
    cos, sin: [positions, head_size / 2], float32, contiguous. A position beyond them gives NaN.
    position: [tokens], int32; negative for a padding row, whose q stays and which stores nothing.
    kv_index: [tokens], int64, block * block_size + offset; not looked at for a padding row.
    k_cache, v_cache: [blocks, kv_heads, block_size, head_size], q's dtype; blocks and heads may lie apart.
    q_norm, k_norm: weights [head_size] of norms before the rotation, float32 or q's dtype, or None; eps: theirs.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    _check(q, k, v, cos, sin, position, kv_index, k_cache, v_cache, q_norm, k_norm)
    (T, H, D), G = q.shape, k.shape[1]
    if T == 0:
        return
    with on_device_of(q):
        _rope_store_kernel[(T, triton.cdiv(H, BLOCK_H) + triton.cdiv(G, BLOCK_H))](
            q,
            k,
            v,
            cos,
            sin,
            position,
            kv_index,
            k_cache,
            v_cache,
            q_norm,
            k_norm,
            eps,
            cos.shape[0],
            q.stride(0),
            k.stride(0),
            v.stride(0),
            k_cache.stride(0),
            k_cache.stride(1),
            H=H,
            G=G,
            D=D,
            BLOCK_SIZE=k_cache.shape[2],
            BLOCK_H=BLOCK_H,
            BLOCK_D=triton.next_power_of_2(D // 2),
            num_warps=1,
            **launch_options(q.device.index),
        )


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    kv_index: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
) -> None:
    op = "rope_store"
    check_device(op, q)
    if q.dtype not in TRITON_DTYPES or q.dim() != 3 or k.dim() != 3 or q.shape[2] % 2 or k_cache.dim() != 4:
        raise ValueError(
            f"{op}: want q [T, H, D] and k [T, G, D] in bfloat16, float16 or float32, D even, and k_cache "
            f"[blocks, G, block_size, D], got {list(q.shape)} {q.dtype}, {list(k.shape)} and {list(k_cache.shape)}"
        )
    (T, _, D), G = q.shape, k.shape[1]
    cache_shape = (k_cache.shape[0], G, k_cache.shape[2], D)
    for name, tensor, shape, dtype in (
        ("q", q, tuple(q.shape), q.dtype),
        ("k", k, (T, G, D), q.dtype),
        ("v", v, (T, G, D), q.dtype),
        ("cos", cos, (cos.shape[0], D // 2), torch.float32),
        ("sin", sin, (cos.shape[0], D // 2), torch.float32),
        ("position", position, (T,), torch.int32),
        ("kv_index", kv_index, (T,), torch.int64),
        ("k_cache", k_cache, cache_shape, q.dtype),
        ("v_cache", v_cache, cache_shape, q.dtype),
    ):
        check_tensor(op, name, tensor, shape, dtype, q)
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None:
            check_tensor(op, name, norm, (D,), torch.float32 if norm.dtype == torch.float32 else q.dtype, q)
    heads_touch = all(x.shape[1] < 2 or x.stride(1) == D for x in (q, k, v))
    rows_touch = k_cache.stride(2) == D and k_cache.stride() == v_cache.stride()
    if not (heads_touch and rows_touch and cos.is_contiguous() and sin.is_contiguous()):
        raise ValueError(f"{op}: the heads of a token, the rows of a block, cos and sin must be contiguous")
