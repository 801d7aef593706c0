"""Attention of chunks of prompts on a GPU: many queries a sequence, over pages.

    y[t, h] = sum over j of softmax_j(scale q[t, h] . k[j]) v[j],   max(0, p - window + 1) <= j <= p

    q [T, H, D]   k_cache, v_cache [blocks, G, block_size, D]   block_table [C, n]   query_start [C + 1]
    first_position [C]   ->   y [T, H, D]

where chunk c holds tokens query_start[c] to query_start[c + 1] - 1 of its sequence, p is first_position[c] + t -
query_start[c], and head h reads key-value head h / (H / G). Keys and values of the chunk and of all before it are in
the pages. A chunk of first position -1 is padding: it reads nothing, and its result is 0. The rows of a tile are the
chunk's queries times the H / G heads that share keys, side by side, so that any number of heads fills the tiles. A
row's bits depend neither on the batch nor on the chunk that it came in. Bytes: 4 D G a position and tile in bf16, from
the L2 cache mostly; FLOPs: 4 D H for each query and position. See docs/kernels/attention.md.
"""

import torch
from torch import Tensor

from .decode_attention import attend_ref
from .triton.attention_checks import check_pages
from .triton.attention_config import LOG2_E, LONGEST_WINDOW, prefill_config
from .triton.attention_tile import attend, first_seen, load_queries, normalised
from .triton.checks import check_tensor, on_device_of
from .triton.gemm_config import device_of
from .triton.optional_triton import tl, triton
from .triton.pdl import launch_options, wait_at_start


def prefill_attention_ref(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    first_position: Tensor,
    scale: float,
    window: int,
    max_query_len: int,
) -> Tensor:
    """Semantics: the chunks side by side, padded to the longest, softmax in float32, rounded once.

    Arguments as in `prefill_attention_triton`; rows of no chunk become 0.
    """
    T, C = len(q), len(block_table)
    start, end = query_start[:-1].long(), query_start[1:].long()
    i = torch.arange(max_query_len, device=q.device)
    token = start[:, None] + i  # [C, max_query_len]
    there = (token < end[:, None]) & (first_position[:, None] >= 0)
    position = torch.where(there, first_position[:, None] + i, -1)
    token = torch.where(there, token, T)
    # Row T stands for what there is not.
    rows = torch.cat([q, q.new_zeros(1, *q.shape[1:])])
    y = attend_ref(rows[token], k_cache, v_cache, block_table, position, scale, window)
    result = torch.zeros_like(rows, memory_format=torch.contiguous_format)
    return result.index_copy(0, token.flatten(), y.flatten(0, 1))[:T] if C else result[:T]


@triton.jit(do_not_specialize=["window"])
def _prefill_attention_kernel(
    q: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    block_table: tl.tensor,
    query_start: tl.tensor,
    first_position: tl.tensor,
    y: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    H: tl.tensor,
    stride_q: tl.tensor,
    stride_table: tl.tensor,
    stride_block: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """BLOCK_M rows, queries times heads, of a chunk under a key-value head."""
    wait_at_start(PDL)
    # The last tiles of a chunk see most, and start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head, c = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start = tl.load(query_start + c)
    length = tl.load(query_start + c + 1) - start
    if tile * BLOCK_M >= length * GROUP:
        return
    p = tl.load(first_position + c)
    r = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    i = r // GROUP
    in_m = i < length
    row = (start + i).to(tl.int64)
    head = kv_head * GROUP + r % GROUP
    position = p + i

    begin = first_seen(p + tile * BLOCK_M // GROUP, window)
    end = p + tl.minimum(length, ((tile + 1) * BLOCK_M + GROUP - 1) // GROUP)
    if p < 0:
        begin, end = 0, 0
    queries = load_queries(q + row * stride_q + head * HEAD_SIZE, in_m, HEAD_SIZE, BLOCK_D)
    in_kv = kv_head * (BLOCK_SIZE * HEAD_SIZE)
    _, total, acc = attend(
        queries, k_cache + in_kv, v_cache + in_kv, block_table + c * stride_table,
        first_seen(position, window), position, begin, end, scale, stride_block,
        HEAD_SIZE, BLOCK_SIZE, BLOCK_D, BLOCK_J,
    )  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    place = ((row * H + head) * HEAD_SIZE)[:, None] + d[None, :]
    mask = in_m[:, None] & (d < HEAD_SIZE)[None, :]
    tl.store(y + place, normalised(acc, total).to(y.dtype.element_ty), mask=mask)


def prefill_attention_triton(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    first_position: Tensor,
    scale: float,
    window: int,
    max_query_len: int,
) -> Tensor:
    """Launches on a CUDA device (or in Triton's interpreter, on CPU tensors).

    q: [T, H, D], the chunks' queries one chunk after the other, bf16, float16 or float32; rows may lie apart.
    k_cache, v_cache: [blocks, G, block_size, D], q's dtype; block_size is a power of two, H a multiple of G.
    block_table: [C, n], int32; rows may lie apart; only entries of positions that are seen are read.
    query_start: [C + 1], int32, ascending, where each chunk begins in q, and where the last ends.
    first_position: [C], int32, of each chunk's first token; -1 for padding.
    window: when positive, a query sees only the last `window` positions; 0 for all.
    max_query_len: tokens of the longest chunk, or more; padding counts.
    Returns [T, H, D] in q's dtype; rows of no chunk are not written.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device, heads of more than 256
    numbers or blocks of no power of two.
    """
    op = "prefill_attention"
    check_pages(op, q, k_cache, v_cache, block_table)
    (T, H, D), (_, G, size, _), C = q.shape, k_cache.shape, len(block_table)
    check_tensor(op, "query_start", query_start, (C + 1,), torch.int32, q)
    check_tensor(op, "first_position", first_position, (C,), torch.int32, q)
    y = q.new_empty(T, H, D)
    if y.numel() == 0 or C == 0 or max_query_len == 0:
        return y
    config = prefill_config(D, q.dtype, device_of(q.device.index))
    with on_device_of(q):
        _prefill_attention_kernel[(triton.cdiv(max_query_len * (H // G), config.block_m), G, C)](
            q,
            k_cache,
            v_cache,
            block_table,
            query_start,
            first_position,
            y,
            scale * LOG2_E,
            min(window, LONGEST_WINDOW),
            H,
            q.stride(0),
            block_table.stride(0),
            k_cache.stride(0),
            GROUP=H // G,
            HEAD_SIZE=D,
            BLOCK_SIZE=size,
            BLOCK_M=config.block_m,
            BLOCK_D=config.block_d,
            BLOCK_J=config.block_j,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            **launch_options(q.device.index),
        )
    return y
