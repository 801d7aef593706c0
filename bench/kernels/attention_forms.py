"""What attention on a GPU is compared with: PyTorch's, on keys and values that lie in one piece."""

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention_case import AttentionCase

Calls = list[Callable[[], Tensor]]


def library_decode(case: AttentionCase, q: Tensor) -> Iterator[tuple[str, Calls]]:
    """Results are [sequences, H, 1, D]."""
    pieces = [case.in_one_piece(copy) for copy in range(len(case.tables))]
    attend = partial(F.scaled_dot_product_attention, q[:, :, None], enable_gqa=True)
    yield "torch SDPA", [partial(attend, k, v) for k, v in pieces]


def library_prefill(case: AttentionCase, q: Tensor) -> Iterator[tuple[str, Calls]]:
    """Results are [sequences, H, length, D], and [tokens, H, D]."""
    k, v = case.in_one_piece(0)
    # As a model's queries lie: tokens, then heads.
    queries = q.view(case.sequences, case.length, *q.shape[1:]).transpose(1, 2)
    attend = partial(F.scaled_dot_product_attention, queries, k, v, is_causal=True, enable_gqa=True)
    yield "torch SDPA", [attend]
    k, v = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in (k, v))
    start = torch.arange(case.sequences + 1, dtype=torch.int32, device=q.device) * case.length
    yield "torch varlen_attn", [partial(_varlen, q, k, v, start, case.length)]


def _varlen(q: Tensor, k: Tensor, v: Tensor, start: Tensor, length: int) -> Tensor:
    """Raises where this torch has none, or none for the device."""
    from torch.nn.attention.varlen import varlen_attn

    attend: Any = varlen_attn
    known = signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    return attend(q, k, v, start, start, length, length, **options)
