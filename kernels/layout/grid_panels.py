"""Weights on a grid (grid.py) in the order in which a GPU's kernels read them: panels of 64 outputs, a stream each.

    codes      Q4_0, Q4_1   uint8 [panels, steps, 1, 64, 32]
               Q8_0         int8  [panels, steps, 2, 64, 32]
    numbers    float16 or float32 [panels, groups, 1 or 2, 64], scales and minima

A step is two groups, 64 inputs. What a tile reads at a step is one piece of memory, 2 or 4 KiB, and so are the
scales of its group. A byte of two codes holds input n of the first group in its low nibble and input n of the
second in its high one, so that a tile of bytes gives the codes of each group as they lie, and nothing changes
places between threads. Zero padded: to whole panels, and to an even number of groups. Q4_K has the codes of Q4_1,
and numbers of float32.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .grid import GROUP, Grid

GPU_PANEL = 64
# Codes -8 to 7, 0 to 15 with a minimum, and -128 to 127.
GridFormat: TypeAlias = Literal["Q4_0", "Q4_1", "Q8_0"]


@dataclass(frozen=True, slots=True)
class GridPanels:
    """A matrix [M, N] on a grid, for a GPU; see the module's docstring."""

    codes: Tensor
    numbers: Tensor
    shape: tuple[int, int]
    format: GridFormat

    @classmethod
    def of(cls, grid: Grid, device: torch.device | str = "cpu") -> "GridPanels":
        """The same values, to the bit, on a device."""
        form: GridFormat = "Q8_0" if grid.bits == 8 else "Q4_0" if grid.minimum is None else "Q4_1"
        M, N = grid.codes.shape
        numbers = [grid.scale] if grid.minimum is None else [grid.scale, grid.minimum]
        return cls(
            _codes(grid.codes, form).to(device),
            # [panels, 64, groups, numbers] -> [panels, groups, numbers, 64]
            _padded(torch.stack(numbers, 2)).permute(0, 2, 3, 1).contiguous().to(device),
            (M, N),
            form,
        )

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.numbers.nbytes

    def rows(self, index: Tensor) -> Tensor:
        """The values [n, N] of some rows [n] (int64), float32."""
        panel, lane = index // GPU_PANEL, index % GPU_PANEL
        codes, numbers = self.codes[panel, :, :, lane], self.numbers[panel, :, :, lane].float()
        if self.format != "Q8_0":
            codes = torch.cat([codes & 15, codes >> 4], 2)
        values = codes.flatten(1, 2).float()  # [n, groups, 32]
        if self.format == "Q4_0":
            values = values - 8
        values = values * numbers[:, :, :1]
        if self.format == "Q4_1":
            values = values + numbers[:, :, 1:]
        return values.flatten(1)[:, : self.shape[1]]

    def values(self) -> Tensor:
        """The float32 matrix."""
        return self.rows(torch.arange(self.shape[0], device=self.device))


def _padded(values: Tensor) -> Tensor:
    """[M, groups, n] -> [panels, 64, even number of groups, n]."""
    M, groups, _ = values.shape
    padded = torch.nn.functional.pad(values, (0, 0, 0, groups % 2, 0, -M % GPU_PANEL))
    return padded.unflatten(0, (-1, GPU_PANEL))


def _codes(codes: Tensor, form: GridFormat) -> Tensor:
    if form == "Q4_0":
        codes = codes + 8
    pairs = _padded(codes.unflatten(1, (-1, GROUP))).unflatten(2, (-1, 2))  # [panels, 64, steps, 2, 32]
    if form != "Q8_0":
        nibbles = pairs.view(torch.uint8)
        pairs = nibbles[:, :, :, :1] | nibbles[:, :, :, 1:] << 4
    return pairs.permute(0, 2, 3, 1, 4).contiguous()
