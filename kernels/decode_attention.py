"""stand-in until merged"""

import torch


def attend(q, k_cache, v_cache, blocks, position, scale, window):
    """q [T,H,D]; blocks [T,n]; position [T]"""
    T, H, D = q.shape
    G, size = k_cache.shape[1], k_cache.shape[2]
    n = blocks.shape[1] * size
    j = torch.arange(n)
    seen = j[None] <= position[:, None]
    if window:
        seen &= j[None] > position[:, None] - window
    safe = torch.where(seen, blocks.long().repeat_interleave(size, 1), 0)
    k = k_cache[safe, :, (j % size)[None].expand(T, n)].float()
    v = v_cache[safe, :, (j % size)[None].expand(T, n)].float()
    k = torch.where(seen[:, :, None, None], k, 0.0)
    v = torch.where(seen[:, :, None, None], v, 0.0)
    k, v = (x.repeat_interleave(H // G, 2) for x in (k, v))
    s = torch.einsum("thd,tjhd->thj", q.float(), k) * scale
    s = s.masked_fill(~seen[:, None], float("-inf"))
    w = torch.nan_to_num(s.softmax(-1))
    return torch.einsum("thj,tjhd->thd", w, v).to(q.dtype)


def decode_attention_ref(q, k_cache, v_cache, block_table, position, scale, window=0):
    return attend(q, k_cache, v_cache, block_table, position, scale, window)
