"""An operand of the Triton GEMM on the host: rows of tokens and the weight matrix that they meet."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout.grid import GROUP
from ..layout.grid_panels import GridPanels
from .checks import Factor
from .gemm_config import Scales
from .optional_triton import triton


@dataclass(frozen=True, slots=True)
class Operand:
    """Tokens and weights as the kernel takes them.

    x: [T, in_features].
    data: the weights or their quantised values, [out_features, width], or the codes of a grid.
    scale: [out_features, groups], or None; or the numbers of a grid.
    format: "plain", "int8", "int4", "fp8", or that of a grid.
    group: in_features that share a scale; 0 if all of them do, or there is none.
    grid_outputs: out_features of a grid, whose data are not a row each; 0 for other weights.
    """

    x: Tensor
    data: Tensor
    scale: Tensor | None = None
    format: str = "plain"
    group: int = 0
    grid_outputs: int = 0

    @classmethod
    def of(cls, x: Tensor, weight: Factor) -> "Operand":
        """Triton knows fp8 on newer chips only, so its bytes are taken apart by hand."""
        if isinstance(weight, Tensor):
            return cls(x, weight)
        if isinstance(weight, GridPanels):
            return cls(x, weight.codes, weight.numbers, weight.format, GROUP, weight.shape[0])
        # Without inputs there are no scales either.
        if weight.shape[1] == 0:
            return cls(x, weight.data)
        data = weight.data.view(torch.uint8) if weight.format == "fp8" else weight.data
        return cls(x, data, weight.scale, weight.format, 0 if weight.scale_a_row else weight.group)

    @property
    def in_features(self) -> int:
        return self.x.shape[1]

    @property
    def out_features(self) -> int:
        return self.grid_outputs or self.data.shape[0]

    @property
    def kind(self) -> tuple[str, int, torch.dtype | None]:
        """What operands of a launch have in common."""
        return self.format, self.group, None if self.scale is None else self.scale.dtype

    @property
    def scales(self) -> Scales:
        if self.grid_outputs:
            return "grid"
        return "none" if self.scale is None else "group" if self.group else "row"

    @property
    def aligned(self) -> bool:
        """Whether the rows of x and of the weights begin at multiples of 16 values."""
        sizes = (self.x.data_ptr(), self.data.data_ptr(), row_stride(self.x), self._stride)
        return all(size % 16 == 0 for size in (*sizes, self.in_features))

    @property
    def fields(self) -> tuple[Tensor | int, ...]:
        """What a kernel takes, in its order. Where there are no scales the weights stand in, and are not read."""
        scale = self.data if self.scale is None else self.scale
        width = self._stride if self.grid_outputs else self.data.shape[1]
        return self.x, self.data, scale, self.in_features, width, row_stride(self.x), self._stride

    @property
    def _stride(self) -> int:
        """From a row of weights to the next; of a grid from a panel to the next."""
        return self.data.stride(0) if self.grid_outputs else row_stride(self.data)


def row_stride(matrix: Tensor) -> int:
    """Numbers from a row to the next; 0 for a single row, whatever its stride says: it is as aligned as its start."""
    return matrix.stride(0) if matrix.shape[0] > 1 else 0


def all_aligned(operands: Sequence[Operand]) -> bool:
    return all(operand.aligned for operand in operands)


def kernel_operands(operands: Sequence[Operand]) -> tuple[tuple[Tensor | int, ...], ...]:
    """The groups' fields, a tuple each."""
    return tuple(zip(*(operand.fields for operand in operands), strict=True))


def splits_of(operands: Sequence[Operand], size: int) -> int:
    """Splits of the longest operand."""
    return max((triton.cdiv(operand.in_features, size) for operand in operands), default=0)
