"""The memory layout of key-value cache blocks.

On a CPU a block holds, of each head, its keys as `pack` packs a matrix [block_size, head_size], and its values as
it packs [head_size, block_size]: the products of attention then read either as they read weights, 16 keys, or 16
columns of the values, to a panel.

    k_cache  bf16     [blocks, G, ceil(block_size / 16), ceil(D / 2), 16, 2]
             float32  [blocks, G, ceil(block_size / 16), D, 16, 1]
    v_cache  bf16     [blocks, G, ceil(D / 16), block_size / 2, 16, 2]
             float32  [blocks, G, ceil(D / 16), block_size, 16, 1]

On CUDA both are [blocks, G, block_size, D]. In either case a block of a layer is `k_cache[block]` and
`v_cache[block]`, and copying these copies its tokens.
"""

import torch
from torch import Tensor

from .. import _C
from .packed import PANEL, pack_width


def empty_kv(
    blocks: int,
    kv_heads: int,
    block_size: int,
    head_size: int,
    dtype: torch.dtype,
    device: torch.device,
    packed: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """k_cache and v_cache of one layer, uninitialised; packed on a CPU, in large pages.

    packed: whether in the layout of a CPU; by default where the device is one.
    Raises: ValueError for an odd block size in bf16 on a CPU, where positions lie in pairs.
    """
    if not (device.type == "cpu" if packed is None else packed):
        rows = torch.empty(blocks, kv_heads, block_size, head_size, dtype=dtype, device=device)
        return rows, torch.empty_like(rows)
    width = pack_width(dtype)
    if block_size % width:
        raise ValueError(f"a block in {dtype} must hold an even number of positions, not {block_size}")
    keys = (-(-block_size // PANEL), -(-head_size // width))
    values = (-(-head_size // PANEL), block_size // width)
    k, v = (
        _C.empty_in_huge_pages([blocks, kv_heads, *sizes, PANEL, width], dtype) for sizes in (keys, values)
    )
    return k, v


def block_size(k_cache: Tensor, v_cache: Tensor) -> int:
    """Positions in a block."""
    return v_cache.shape[3] * v_cache.shape[5] if is_packed(v_cache) else k_cache.shape[2]


def is_packed(cache: Tensor) -> bool:
    """Whether the cache has the layout of a CPU."""
    return cache.dim() == 6


def read_kv(
    k_cache: Tensor, v_cache: Tensor, block: Tensor, offset: Tensor, head_size: int
) -> tuple[Tensor, Tensor]:
    """Keys and values [n, G, head_size] at n places."""
    if not is_packed(k_cache):
        return k_cache[block, :, offset], v_cache[block, :, offset]
    width = k_cache.shape[5]
    k = k_cache[block, :, offset // PANEL, :, offset % PANEL]
    v = v_cache[block, :, :, offset // width, :, offset % width]
    return k.flatten(2)[..., :head_size], v.flatten(2)[..., :head_size]


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, block: Tensor, offset: Tensor) -> None:
    """Writes keys and values [n, G, head_size] to n places."""
    if not is_packed(k_cache):
        k_cache[block, :, offset] = k
        v_cache[block, :, offset] = v
        return
    head_size, width = k.shape[2], k_cache.shape[5]
    k = torch.nn.functional.pad(k, (0, -head_size % width))
    k_cache[block, :, offset // PANEL, :, offset % PANEL] = k.unflatten(2, (-1, width))
    for panel, columns in enumerate(v.split(PANEL, 2)):
        v_cache[block, :, panel, offset // width, : columns.shape[2], offset % width] = columns
