"""Attention of decoding on a GPU: one query a row, over pages.

    y[b, h] = sum over j of softmax_j(scale q[b, h] . k[j]) v[j],   max(0, p - window + 1) <= j <= p

    q [B, H, D]   k_cache, v_cache [blocks, G, block_size, D]   block_table [B, n]   position [B]   ->   y [B, H, D]

where p = position[b], and head h reads key-value head h / (H / G). A row of position -1 is padding: it reads nothing,
and its result is 0. The H / G heads that share keys make up one tile, so that each key is read once. A row's positions
are cut into splits of 512 absolute positions, a program each; a second kernel combines their sums in order. It is
launched where the table is wider than a split, which shapes tell: give a narrower view of the table for short contexts.
A row has the same bits in every batch and with every width. Bytes: 4 D G a position in bf16; FLOPs: 4 D H a position.
See docs/kernels/attention.md.
"""

import torch
from torch import Tensor

from .triton.attention_checks import check_pages
from .triton.checks import check_tensor, on_device_of
from .triton.decode_attention import SPLIT_SIZE, launch

# Rows are launched in parts of which the sums of the splits take at most so much.
WORKSPACE_BYTES = 256 * 2**20


def attend_ref(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    position: Tensor,
    scale: float,
    window: int = 0,
) -> Tensor:
    """Semantics: attention of L queries to a sequence, in float32.

    q: [B, L, H, D]; position: [B, L], -1 for padding, whose result is 0. The rest as in `decode_attention_ref`.
    """
    (B, L, H, D), (_, G, size, _) = q.shape, k_cache.shape
    j = torch.arange(block_table.shape[1] * size, device=q.device)
    seen = j <= position[..., None]  # [B, L, J]
    if window:
        seen &= j > position[..., None].long() - window
    read = seen.any(1)
    block = torch.where(read, block_table.long().repeat_interleave(size, 1), 0)
    k, v = (
        cache[block, :, j % size].float().masked_fill(~read[..., None, None], 0).transpose(1, 2)
        for cache in (k_cache, v_cache)
    )  # [B, G, J, D]
    queries = q.float().view(B, L, G, H // G, D).permute(0, 2, 3, 1, 4)  # [B, G, H / G, L, D]
    score = queries @ k[:, :, None].transpose(3, 4) * scale
    score = score.masked_fill(~seen[:, None, None], float("-inf"))
    probability = score.softmax(-1).masked_fill(~seen[:, None, None], 0)
    y = probability @ v[:, :, None]
    return y.permute(0, 3, 1, 2, 4).reshape(B, L, H, D).to(q.dtype)


def decode_attention_ref(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    position: Tensor,
    scale: float,
    window: int = 0,
    sequence: Tensor | None = None,
) -> Tensor:
    """Semantics: gathers the keys and values of all rows, softmax in float32, rounded once.

    Arguments as in `decode_attention_triton`.
    """
    if sequence is not None:
        block_table = block_table[sequence.long()]
    return attend_ref(q[:, None], k_cache, v_cache, block_table, position[:, None], scale, window)[:, 0]


def decode_attention_triton(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    position: Tensor,
    scale: float,
    window: int = 0,
    sequence: Tensor | None = None,
) -> Tensor:
    """Launches on a CUDA device (or in Triton's interpreter, on CPU tensors).

    q: [B, H, D], bf16, float16 or float32; rows may lie apart.
    k_cache, v_cache: [blocks, G, block_size, D], q's dtype; block_size is a power of two, H a multiple of G.
    block_table: [B, n], int32; rows may lie apart; only entries of positions that are seen are read.
    position: [B], int32, below n * block_size; -1 for padding.
    window: when positive, a row sees only the last `window` positions.
    sequence: [B], int32, a row's row of block_table; None for its own.
    Returns [B, H, D] in q's dtype.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device, heads of more than 256
    numbers or blocks of no power of two.
    """
    op = "decode_attention"
    check_pages(op, q, k_cache, v_cache, block_table)
    B, H, D = q.shape
    for name, index in (("position", position), ("sequence", sequence)):
        if index is not None:
            check_tensor(op, name, index, (B,), torch.int32, q)
    if sequence is None and len(block_table) != B:
        raise ValueError(f"{op}: block_table must have {B} rows, one a query, not {len(block_table)}")
    y = q.new_empty(B, H, D)
    splits = max(1, -(-block_table.shape[1] * k_cache.shape[2] // SPLIT_SIZE))
    part = max(1, B if splits == 1 else WORKSPACE_BYTES // (4 * H * splits * (D + 2)))
    with on_device_of(q):
        for start in range(0, B, part):
            rows = slice(start, start + part)
            table = block_table if sequence is not None else block_table[rows]
            index = None if sequence is None else sequence[rows]
            launch(q[rows], k_cache, v_cache, table, position[rows], scale, window, index, splits, y[rows])
    return y
