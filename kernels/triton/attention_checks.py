"""Checks that the attention launchers share: queries, pages and the block table."""

import torch
from torch import Tensor

from .attention_config import LARGEST_HEAD
from .checks import TRITON_DTYPES, check_device


def check_pages(op: str, q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor) -> None:
    """Raises ValueError unless queries [T, H, D] can attend to pages in the layout of CUDA through this table.

    NotImplementedError for a device without Triton, a head that is too large, or blocks of no power of two.
    """
    check_device(op, q)
    if q.dtype not in TRITON_DTYPES:
        raise ValueError(f"{op}: q on {q.device} must be bfloat16, float16 or float32, not {q.dtype}")
    if q.dim() != 3 or k_cache.dim() != 4 or k_cache.shape[3] != q.shape[2] or q.shape[1] % k_cache.shape[1]:
        raise ValueError(
            f"{op}: want q [T, H, D] and k_cache [blocks, G, block_size, D] with H a multiple of G, "
            f"got {list(q.shape)} and {list(k_cache.shape)}"
        )
    H, D = q.shape[1:]
    if q.numel() and H * D > 1 and (q.stride(2) != 1 or (H > 1 and q.stride(1) != D)):
        raise ValueError(f"{op}: the heads of a row of q must lie side by side")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.shape != k_cache.shape or cache.dtype != q.dtype or cache.device != q.device:
            raise ValueError(
                f"{op}: {name} must be {list(k_cache.shape)} {q.dtype} on {q.device}, "
                f"not {list(cache.shape)} {cache.dtype} on {cache.device}"
            )
        if not cache.is_contiguous():
            raise ValueError(f"{op}: {name} must be contiguous")
    if block_table.dim() != 2 or block_table.dtype != torch.int32 or block_table.device != q.device:
        raise ValueError(
            f"{op}: block_table must be a matrix of int32 on {q.device}, "
            f"not {list(block_table.shape)} {block_table.dtype} on {block_table.device}"
        )
    if block_table.shape[1] > 1 and block_table.stride(1) != 1:
        raise ValueError(f"{op}: block_table must be contiguous in its last dimension")
    if D > LARGEST_HEAD:
        raise NotImplementedError(f"{op}: heads of {D} numbers, the kernels take {LARGEST_HEAD} at most")
    size = k_cache.shape[2]
    if size < 1 or size & (size - 1):
        raise NotImplementedError(f"{op}: blocks of {size} positions, the kernels want a power of two")
