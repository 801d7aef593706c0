"""Small unsigned integers packed into int32 words, the first in the lowest bits."""

import torch
from torch import Tensor


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """uint8 [..., 32 / bits] of int32 [...]: the integers in each word.

    bits: 4 or 8.
    """
    # Little-endian bytes, as safetensors stores them.
    stored = words.contiguous().unsqueeze(-1).view(torch.uint8)
    if bits == 8:
        return stored
    return torch.stack((stored & 15, stored >> 4), -1).flatten(-2)
