"""Random numbers that follow from a request's seed and the index of its token alone.

    u[b] = (first word of Philox4x64-10 with key (seed[b], index[b]) and counter (1, 0, 0, 0) >> 11) / 2**53

    seed [B]   index [B]   ->   u [B], float64 in [0, 1)

The numbers of numpy's Generator(Philox(key=[seed, index])).random(), bit for bit (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011). Ten rounds of two 64-bit products; `sample` computes one a row in registers.
"""

import torch
from torch import Tensor

from .triton.optional_triton import tl, triton

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def uniform_ref(seed: Tensor, index: Tensor) -> Tensor:
    """Semantics: u[b] = Philox4x64-10(key=(seed[b], index[b]), counter=(1, 0, 0, 0))[0] >> 11, over 2**53.

    seed: [rows], int64: the bits of an unsigned number.
    index: [rows], int64 or int32.
    """
    key = [seed.long(), index.long()]
    counter = [torch.full_like(key[0], word) for word in (1, 0, 0, 0)]
    steps, multipliers = ([_signed(word) for word in words] for words in (_KEY_STEPS, _MULTIPLIERS))
    for _ in range(10):
        high = [_product_high(counter[2 * i], multipliers[i]) for i in (0, 1)]
        low = [counter[2 * i] * multipliers[i] for i in (0, 1)]
        counter = [high[1] ^ counter[1] ^ key[0], low[1], high[0] ^ counter[3] ^ key[1], low[0]]
        key = [word + step for word, step in zip(key, steps, strict=True)]
    return ((counter[0] >> 11) & (2**53 - 1)).double() / 2**53


def _signed(word: int) -> int:
    """The int64 of the same 64 bits."""
    return word - (word >> 63 << 64)


def _product_high(a: Tensor, b: int) -> Tensor:
    """The upper 64 bits of the unsigned product, by halves of 32 bits: torch has signed products only."""
    low = 2**32 - 1
    a_low, a_high, b_low, b_high = a & low, (a >> 32) & low, b & low, (b >> 32) & low
    carry = (((a_low * b_low) >> 32) & low) + ((a_high * b_low) & low) + ((a_low * b_high) & low)
    upper = ((a_high * b_low) >> 32 & low) + ((a_low * b_high) >> 32 & low)
    return a_high * b_high + upper + (carry >> 32)


@triton.jit
def random_word(seed: tl.tensor, index: tl.tensor) -> tl.tensor:
    """The first word of Philox4x64-10, uint64. seed, index: int64, one number or a block."""
    k0 = seed.to(tl.uint64, bitcast=True)
    k1 = index.to(tl.uint64, bitcast=True)
    c0 = k0 * 0 + 1
    c1 = k0 * 0
    c2 = k0 * 0
    c3 = k0 * 0
    m0 = tl.full((), 0xD2E7470EE14C6C93, tl.uint64)
    m1 = tl.full((), 0xCA5A826395121157, tl.uint64)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, m0 + k0 * 0)
        high1 = tl.umulhi(c2, m1 + k0 * 0)
        low0 = c0 * m0
        low1 = c2 * m1
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
        k1 += tl.full((), 0xBB67AE8584CAA73B, tl.uint64)
    return c0
