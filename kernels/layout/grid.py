"""Weights on a grid, as models bring them that arrive quantised, in the order in which a CPU's kernels read them.

    weight[m, n] = scale[m, n // 32] * code[m, n] + minimum[m, n // 32]

    GGUF    codes      scale, minimum        packed: uint8 [ceil(M / 16), blocks, lines, 64]
    Q4_0    -8 .. 7    float16, none         two groups a block: 2 x 4 lines of codes, 1 of scales
    Q8_0    -128..127  float16, none         two groups a block: 2 x 8 lines of codes, 1 of scales
    Q4_1    0 .. 15    float16, float16      a group a block: 4 lines of codes, 1 of scales and minima
    Q4_K    0 .. 15    float32, float32      a group a block: 4 lines of codes, 1 of scales, 1 of minima

The values are those of the file, to the bit: nothing is rounded anew. A line holds four bytes of codes for each of a
panel's 16 outputs, in which inputs stand in the order 0, 2, 1, 3: four of eight bits; or eight of four bits, 0 to 3 in
the lower nibbles and 4 to 7 in the upper. So a mask brings the four inputs that a product of bytes multiplies, and a
shift of both halves the pair, 2 j and 2 j + 1, that a product of bf16 does.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .. import _C
from .packed import PANEL, Packed
from .quantize import Format, Quantized, codes_of

GROUP = 32
GridKind: TypeAlias = Literal["Q4_0", "Q8_0", "Q4_1", "Q4_K"]
# The grids of symmetric integers.
SYMMETRIC: dict[Format, GridKind] = {"int4": "Q4_0", "int8": "Q8_0"}


@dataclass(frozen=True, slots=True)
class GridForm:
    """How the packed weights of a kind lie.

    bits: of a code.
    number: dtype of the scales and minima.
    """

    bits: int
    number: torch.dtype
    has_minimum: bool

    @property
    def block_groups(self) -> int:
        return 1 if self.has_minimum else 2

    @property
    def lines(self) -> int:
        """Lines of a block, by which the kinds are told apart."""
        return int(self.block_groups * GROUP * PANEL * self.bytes) // 64

    @property
    def bytes(self) -> float:
        """Bytes of a weight, its share of a scale and a minimum included."""
        return self.bits / 8 + (1 + self.has_minimum) * self.number.itemsize / GROUP


GRID_FORMS: dict[GridKind, GridForm] = {
    "Q4_0": GridForm(4, torch.float16, has_minimum=False),
    "Q8_0": GridForm(8, torch.float16, has_minimum=False),
    "Q4_1": GridForm(4, torch.float16, has_minimum=True),
    "Q4_K": GridForm(4, torch.float32, has_minimum=True),
}
_BY_LINES = {form.lines: form for form in GRID_FORMS.values()}


@dataclass(frozen=True, slots=True)
class Grid:
    """A matrix [M, N] on a grid; N is a multiple of 32.

    codes: int8 [M, N].
    scale: float16 or float32 [M, N / 32].
    minimum: the same, or None: then codes of four bits are -8 to 7, otherwise 0 to 15.
    bits: 4 or 8; a grid of eight bits has no minimum.
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor | None
    bits: int

    def values(self) -> Tensor:
        """The float32 matrix: a product and a sum of float32, each rounded once."""
        codes = self.codes.unflatten(1, (-1, GROUP)).float()
        values = codes * self.scale.float()[:, :, None]
        if self.minimum is not None:
            values = values + self.minimum.float()[:, :, None]
        return values.flatten(1)


def grid_of(weight: Quantized) -> Grid:
    """The same values, to the bit, on the grid of their format (`SYMMETRIC`).

    Raises: ValueError unless they are integers in groups of 32 inputs with scales that float16 holds.
    """
    if weight.format not in SYMMETRIC or weight.group != GROUP or weight.shape[1] % GROUP:
        raise ValueError(
            f"{weight.format} in groups of {weight.group} of {weight.shape[1]} inputs lies on no grid"
        )
    scale = weight.scale.half()
    if not torch.equal(scale.float(), weight.scale):
        raise ValueError("the scales of a grid must be float16 values")
    return Grid(codes_of(weight), scale, None, GRID_FORMS[SYMMETRIC[weight.format]].bits)


def pack_grid(grid: Grid) -> Packed:
    """Brings a grid into kernel order.

    Raises: ValueError for inputs that are no whole groups, and for numbers that no kernel reads.
    """
    M, N = grid.codes.shape
    if N % GROUP or N == 0:
        raise ValueError(f"weights on a grid come in groups of {GROUP} inputs, not {N}")
    half = grid.scale.dtype == torch.float16
    if grid.bits not in (4, 8) or (grid.minimum is None and not half) or (grid.bits == 8 and not half):
        raise ValueError(f"no kernel reads a grid of {grid.bits} bits with scales of {grid.scale.dtype}")
    origin = 8 if grid.bits == 4 and grid.minimum is None else 0
    lines = _lines(grid.codes + origin, grid.bits)
    if grid.minimum is None:
        blocks = _in_blocks_of_two(lines, _numbers(grid.scale))
    else:
        blocks = torch.cat([lines.flatten(2), _numbers(grid.scale), _numbers(grid.minimum)], 2)
    blocks = blocks.unflatten(2, (-1, 64))
    return Packed(_C.empty_in_huge_pages(blocks.shape, torch.uint8).copy_(blocks), (M, N))


def grid_rows(packed: Packed, rows: Tensor) -> Tensor:
    """The values [n, N] of some rows [n] (int64) of a packed grid, float32."""
    groups = packed.shape[1] // GROUP
    form = _BY_LINES[packed.data.shape[2]]
    blocks, lane, each = packed.data[rows // PANEL], rows % PANEL, torch.arange(len(rows))
    code_lines = form.block_groups * form.bits
    lines, numbers = blocks[:, :, :code_lines], blocks[:, :, code_lines:]
    codes = lines.unflatten(3, (PANEL, 4))[each, :, :, lane]  # [n, blocks, lines, 4]
    codes = _in_order(codes).flatten(3)
    if form.bits == 4:
        nibbles = torch.cat([codes & 15, codes >> 4], 3)
        codes = nibbles.to(torch.int8) - (0 if form.has_minimum else 8)
    values = codes.view(torch.int8).flatten(1).unflatten(1, (-1, GROUP))[:, :groups].float()
    # [n, blocks, scales and minima of a block, 1]
    numbers = (
        numbers.flatten(2).view(form.number).unflatten(2, (-1, PANEL))[each, :, :, lane].float()[..., None]
    )
    values = values * numbers[:, :, : form.block_groups].flatten(1, 2)[:, :groups]
    if form.has_minimum:
        values = values + numbers[:, :, 1]
    return values.flatten(1)


def _panels(values: Tensor) -> Tensor:
    """[M, ...] -> [panels, 16, ...], zeros below the last row."""
    missing = -values.shape[0] % PANEL
    padded = torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing else values
    return padded.unflatten(0, (-1, PANEL))


def _lines(codes: Tensor, bits: int) -> Tensor:
    """uint8 [panels, groups, lines of a group, 64]; codes of four bits begin at 0."""
    grouped = _panels(codes).view(torch.uint8).unflatten(2, (-1, GROUP))  # [panels, 16, groups, 32]
    fours = _in_order(grouped.unflatten(3, (-1, 4)))  # [panels, 16, groups, 8, 2, 2]
    lines = fours if bits == 8 else fours[:, :, :, ::2] | fours[:, :, :, 1::2] << 4
    return lines.permute(0, 2, 3, 1, 4, 5).flatten(3)


def _in_order(fours: Tensor) -> Tensor:
    """A view [..., 2, 2] of inputs [..., 4] in the order of a line: 0, 2, 1, 3, and back."""
    return fours.unflatten(-1, (2, 2)).transpose(-1, -2)


def _numbers(values: Tensor) -> Tensor:
    """uint8 [panels, groups, bytes of 16 numbers]."""
    return _panels(values).transpose(1, 2).contiguous().view(torch.uint8)


def _in_blocks_of_two(lines: Tensor, scales: Tensor) -> Tensor:
    if lines.shape[1] % 2:
        lines = torch.cat([lines, torch.zeros_like(lines[:, :1])], 1)
        scales = torch.cat([scales, torch.zeros_like(scales[:, :1])], 1)
    blocks = lines.unflatten(1, (-1, 2)).flatten(2), scales.unflatten(1, (-1, 2)).flatten(2)
    return torch.cat(blocks, 2)
