"""Tiles of weights for the matrix instructions: quantised ones become x's dtype in registers.

Plain conversions cost five to ten instructions a weight, which at few tokens is more than a chip has time for while
it waits for memory: an H200 streams some 20 bytes a clock to an SM that starts four warp instructions. For
bf16 the weights are therefore turned two at a time by bit arithmetic in PTX, at 1.5 to 3 instructions a weight, and
exactly, since every value of the three formats is a bf16 value. Their scales are not applied here.

    fp8    the byte's exponent and mantissa are moved to bf16's places; times 2**120, which mends the exponent's bias
    int8   128 + (q & 127), the low bits in the mantissa of 128, less 128 or, for negative q, 256
    int4   128 + (q + 8), the nibble in the mantissa of 128, less 136
    grids  the same, for codes from 0 on less 128; the low and the high nibbles of two bytes each become a register

tests/kernels/test_dequant_tile.py runs these instructions for every byte. Other dtypes and the interpreter take the
plain conversion.
"""

from .optional_triton import tl, triton

# $0: two bf16; $1: two bytes, each of which prmt puts into a half word of its own.
FP8_TO_BF16 = tl.constexpr("""{
.reg .b32 word, sign, factor, zero;
mov.b32 factor, 0x7B807B80;
mov.b32 zero, 0x80008000;
cvt.u32.u16 word, $1;
prmt.b32 word, word, 0, 0x1404;
and.b32 sign, word, 0x80008000;
shr.u32 word, word, 4;
and.b32 word, word, 0x07F007F0;
or.b32 word, word, sign;
fma.rn.bf16x2 $0, word, factor, zero;
}""")
INT8_TO_BF16 = tl.constexpr("""{
.reg .b32 word, low, one;
mov.b32 one, 0x3F803F80;
cvt.u32.u16 word, $1;
prmt.b32 word, word, 0, 0x4140;
and.b32 low, word, 0x007F007F;
or.b32 low, low, 0x43004300;
and.b32 word, word, 0x00800080;
or.b32 word, word, 0xC300C300;
fma.rn.bf16x2 $0, low, one, word;
}""")
# $0, $1: bf16 of the low and of the high nibble; $2: a byte.
INT4_TO_BF16 = tl.constexpr("""{
.reg .b32 word, one, less;
mov.b32 one, 0x3F803F80;
mov.b32 less, 0xC308C308;
cvt.u32.u8 word, $2;
mul.lo.u32 word, word, 0x1001;
and.b32 word, word, 0x000F000F;
or.b32 word, word, 0x43004300;
fma.rn.bf16x2 word, word, one, less;
mov.b32 {$0, $1}, word;
}""")

# $0, $1: bf16 of the low and of the high nibbles of two bytes; $2: the bytes.
_NIBBLES_TO_BF16 = """{{
.reg .b32 word, low, one, less;
mov.b32 one, 0x3F803F80;
mov.b32 less, {less};
cvt.u32.u16 word, $2;
prmt.b32 word, word, 0, 0x4140;
and.b32 low, word, 0x000F000F;
or.b32 low, low, 0x43004300;
fma.rn.bf16x2 $0, low, one, less;
shr.u32 word, word, 4;
and.b32 word, word, 0x000F000F;
or.b32 word, word, 0x43004300;
fma.rn.bf16x2 $1, word, one, less;
}}"""
NIBBLES_TO_BF16 = tl.constexpr(_NIBBLES_TO_BF16.format(less="0xC300C300"))
NIBBLES_LESS_8_TO_BF16 = tl.constexpr(_NIBBLES_TO_BF16.format(less="0xC308C308"))


@triton.jit
def from_nibbles(pair: tl.tensor, ORIGIN: tl.constexpr, DTYPE: tl.constexpr) -> tl.tuple:
    """The low and the high nibbles of bytes, each less the origin, 0 or 8."""
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        CODE: tl.constexpr = NIBBLES_LESS_8_TO_BF16 if ORIGIN else NIBBLES_TO_BF16
        return tl.inline_asm_elementwise(
            CODE, "=r,=r,h", [pair], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
    else:
        return (
            ((pair & 15).to(tl.int8) - ORIGIN).to(DTYPE),
            ((pair >> 4).to(tl.int8) - ORIGIN).to(DTYPE),
        )


@triton.jit
def ones_beside(codes: tl.tensor) -> tl.tensor:
    """Ones that lie in registers as converted codes do, so that one x serves products with both.

    A constant would have a layout of its own before sm_90, for which x is loaded a second time, and no copy is
    pipelined.
    """
    if codes.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, 0x3F803F80;", "=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        return tl.full(codes.shape, 1.0, codes.dtype)


@triton.jit
def _from_int4(pair: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """Bytes [BLOCK_M, n] to weights [BLOCK_M, 2 n]."""
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        even, odd = tl.inline_asm_elementwise(
            INT4_TO_BF16, "=h,=h,h", [pair], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=1
        )
        return tl.interleave(even, odd)
    else:
        even = (pair & 15).to(tl.int8) - 8
        odd = (pair >> 4).to(tl.int8) - 8
        return tl.interleave(even, odd).to(DTYPE)


@triton.jit
def from_int8(tile: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        return tl.inline_asm_elementwise(
            INT8_TO_BF16, "=r,h", [tile], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        return tile.to(DTYPE)


@triton.jit
def _from_fp8(tile: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        return tl.inline_asm_elementwise(FP8_TO_BF16, "=r,h", [tile], dtype=tl.bfloat16, is_pure=True, pack=2)
    else:
        # The same in fp16, whose exponent's bias is larger by 8.
        bits = tile.to(tl.int16)
        half = (((bits & 128) << 8) | ((bits & 127) << 7)).to(tl.float16, bitcast=True)
        return (half * 256.0).to(DTYPE)


@triton.jit
def weight_tile(
    w_rows: tl.tensor,
    in_m: tl.tensor,
    step: tl.tensor,
    width: tl.tensor,
    FORMAT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """The weights of a step, [BLOCK_M, BLOCK_N], without their scales, in DTYPE; finite beyond the matrix.

    w_rows: where each row of the tile begins, [BLOCK_M, 1].
    in_m: which of the rows there are, [BLOCK_M].
    width: stored numbers in a row.
    FORMAT: "plain", "int8", "int4" or "fp8" (as bytes).

    Weights are read once: they leave L2 first, before tokens, partial sums and keys and values (where a pipelined copy
    carries that hint, from Triton 3.9 on).
    """
    if FORMAT == "int4":
        byte = step * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        mask = in_m[:, None] & (byte < width)[None, :]
        pair = tl.load(w_rows + byte[None, :], mask=mask, other=0, eviction_policy="evict_first")
        return _from_int4(pair, DTYPE)
    else:
        n = step * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = in_m[:, None] & (n < width)[None, :]
        tile = tl.load(w_rows + n[None, :], mask=mask, other=0.0, eviction_policy="evict_first")
        if FORMAT == "int8":
            return from_int8(tile, DTYPE)
        elif FORMAT == "fp8":
            return _from_fp8(tile, DTYPE)
        else:
            return tile.to(DTYPE)
