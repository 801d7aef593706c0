"""The grids of GGUF's types: codes, scales and minima as a file's blocks hold them.

Layouts: ggml's `block_q4_0`, `block_q4_1`, `block_q8_0` and `block_q4_K` (ggml-common.h).
"""

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from torch import Tensor

from zweave.kernels import Grid, GridKind


def grid_kind(kind: GGMLQuantizationType) -> GridKind | None:
    """The grid that matrices of a type lie on; None if it is none that the kernels read."""
    return cast(GridKind, kind.name) if kind.name in _READERS else None


def row_bytes(kind: GridKind, width: int) -> int | None:
    """Bytes of a stored row of `width` weights; None if these are no whole blocks."""
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return None if width % weights else width // weights * size


def read_grid(stored: np.ndarray, kind: GridKind) -> Grid:
    """The grid of rows of blocks.

    stored: uint8 [M, bytes of a row], of whole blocks.
    """
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    return _READERS[kind](stored.reshape(len(stored), -1, size))


def _halves(blocks: np.ndarray, start: int) -> Tensor:
    """The float16 [M, blocks] at a place of every block."""
    return torch.from_numpy(blocks[:, :, start : start + 2].copy().view(np.float16)[:, :, 0])


def _nibbles(packed: np.ndarray) -> Tensor:
    """int8 [M, blocks * n, 2 b]: the low nibbles of each run of b bytes [M, blocks * n, b], then the high ones."""
    return torch.from_numpy(np.concatenate([packed & 15, packed >> 4], 2).astype(np.int8))


def _q4_0(blocks: np.ndarray) -> Grid:
    return Grid((_nibbles(blocks[:, :, 2:]) - 8).flatten(1), _halves(blocks, 0), None, 4)


def _q4_1(blocks: np.ndarray) -> Grid:
    return Grid(_nibbles(blocks[:, :, 4:]).flatten(1), _halves(blocks, 0), _halves(blocks, 2), 4)


def _q8_0(blocks: np.ndarray) -> Grid:
    codes = torch.from_numpy(blocks[:, :, 2:].copy().view(np.int8))
    return Grid(codes.flatten(1), _halves(blocks, 0), None, 8)


def _q4_k(blocks: np.ndarray) -> Grid:
    """Eight groups a block, whose scales and minima are six bits times the block's own."""
    packed = blocks[:, :, 4:16]
    low, middle, high = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], 2)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], 2)
    # 32 bytes are two groups of 32 inputs.
    codes = _nibbles(blocks[:, :, 16:].reshape(len(blocks), -1, 32))

    def numbers(factor: Tensor, six_bits: np.ndarray) -> Tensor:
        return (factor.float()[:, :, None] * torch.from_numpy(six_bits.astype(np.float32))).flatten(1)

    return Grid(
        codes.flatten(1), numbers(_halves(blocks, 0), scales), -numbers(_halves(blocks, 2), minima), 4
    )


_READERS: dict[str, Callable[[np.ndarray], Grid]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
}
