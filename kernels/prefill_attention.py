"""stand-in until merged"""

import torch

from .decode_attention import attend


def prefill_attention_ref(
    q, k_cache, v_cache, block_table, query_start, first_position, scale, window, max_query_len
):
    counts = (query_start[1:] - query_start[:-1]).long()
    row = torch.arange(len(counts)).repeat_interleave(counts)
    offset = torch.arange(len(q)) - query_start[:-1].long()[row]
    first = first_position.long()[row]
    position = torch.where(first < 0, -1, first + offset)
    return attend(q, k_cache, v_cache, block_table[row], position, scale, window)
