"""The PTX that turns quantised bytes into bf16, run instruction by instruction for every byte."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from zweave.kernels.triton.dequant_tile import (
    FP8_TO_BF16,
    INT4_TO_BF16,
    INT8_TO_BF16,
    NIBBLES_LESS_8_TO_BF16,
    NIBBLES_TO_BF16,
)

BYTES = range(256)


def halves(word: int) -> Tensor:
    """The two bf16 of a register, low one first, as float64."""
    bits = torch.tensor([word & 0xFFFF, word >> 16], dtype=torch.int32) << 16
    return bits.view(torch.float32).double()


def fma_bf16x2(a: int, b: int, c: int) -> int:
    """Exact in float64 for the values at hand, then rounded to bf16 once."""
    exact = halves(a) * halves(b) + halves(c)
    low, high = (int(bits) & 0xFFFF for bits in exact.bfloat16().view(torch.int16))
    return high << 16 | low


def prmt(a: int, b: int, selector: int) -> int:
    """Picks a byte of b:a for each nibble of the selector, lowest first."""
    source = (b << 32 | a).to_bytes(8, "little")
    return int.from_bytes(bytes(source[selector >> 4 * i & 7] for i in range(4)), "little")


OPERATIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "cvt.u32.u16": lambda a: a & 0xFFFF,
    "cvt.u32.u8": lambda a: a & 0xFF,
    "prmt.b32": prmt,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "shr.u32": lambda a, b: a >> b,
    "mul.lo.u32": lambda a, b: a * b & 0xFFFFFFFF,
    "fma.rn.bf16x2": fma_bf16x2,
}


def run(assembly: str, operand: str, value: int) -> dict[str, int]:
    """The registers after the instructions, with the operand at a value."""
    registers = {operand: value}
    for statement in assembly.strip("{}\n").split(";"):
        statement = statement.strip()
        if not statement or statement.startswith(".reg"):
            continue
        operation, arguments = statement.split(" ", 1)
        if pair := re.fullmatch(r"\{(\S+), (\S+)\}, (\w+)", arguments):
            assert operation == "mov.b32"
            word = registers[pair[3]]
            registers |= {pair[1]: word & 0xFFFF, pair[2]: word >> 16}
            continue
        target, *sources = arguments.split(", ")
        values = [registers[name] if name in registers else int(name, 0) for name in sources]
        registers[target] = OPERATIONS[operation](*values)
    return registers


@pytest.mark.parametrize(
    ("assembly", "dtype"),
    [(FP8_TO_BF16, torch.float8_e4m3fn), (INT8_TO_BF16, torch.int8)],
    ids=["fp8", "int8"],
)
def test_two_bytes(assembly, dtype) -> None:
    wanted = torch.tensor(BYTES, dtype=torch.uint8).view(dtype).double()
    for byte in BYTES:
        # NaN is never quantised to.
        if wanted[byte].isnan():
            continue
        other = 255 - byte if not wanted[255 - byte].isnan() else 1
        # What else a register holds above its half word must not show.
        found = halves(run(assembly.value, "$1", 0xDEAD0000 | other << 8 | byte)["$0"])
        assert torch.equal(found, wanted[[byte, other]]), byte
        assert torch.equal(found.signbit(), wanted[[byte, other]].signbit())


def test_two_nibbles() -> None:
    for byte in BYTES:
        registers = run(INT4_TO_BF16.value, "$2", 0xDEADBE00 | byte)
        even, odd = halves(registers["$0"] | registers["$1"] << 16)
        assert (even, odd) == ((byte & 15) - 8, (byte >> 4) - 8), byte


@pytest.mark.parametrize(("assembly", "origin"), [(NIBBLES_TO_BF16, 0), (NIBBLES_LESS_8_TO_BF16, 8)])
def test_nibbles_of_two_bytes(assembly, origin) -> None:
    for byte in BYTES:
        other = 255 - byte
        registers = run(assembly.value, "$2", 0xDEAD0000 | other << 8 | byte)
        low, high = halves(registers["$0"]), halves(registers["$1"])
        assert low.tolist() == [(byte & 15) - origin, (other & 15) - origin], byte
        assert high.tolist() == [(byte >> 4) - origin, (other >> 4) - origin], byte
