"""Weights in the order in which the kernels read them.

On a CPU a matrix is cut into panels of 16 outputs. Within a panel the inputs come one after the other, in packs of
one, two or four that an instruction multiplies at once, so that a product reads its weights as one stream:

    bf16     [ceil(M / 16), ceil(N / 2), 16, 2]
    float32  [ceil(M / 16), N, 16, 1]
    int8     [ceil(M / 16), 2 ceil(N / 8), 16, 4], scales float32 [ceil(M / 16), groups, 16, 1]
    int4     [ceil(M / 16), ceil(N / 8), 16, 4], the same scales; a byte holds inputs n (low) and n + 4 of eight

zero padded. Two inputs of bf16 are a pack because `vdpbf16ps` multiplies pairs, four of int8 because `vpdpbusd` does
four, and eight of int4 are two times four after a mask and a shift. A pack is not a group: that is the inputs which
share a scale. On CUDA the packed form is the contiguous matrix itself, and its scales.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .quantize import Format, Quantized, dequantize

PANEL = 16
# Inputs of an activation that share a scale on a CPU; a group of weights is a multiple.
BLOCK = 64
FORMATS: dict[torch.dtype, Format] = {torch.int8: "int8", torch.uint8: "int4", torch.float8_e4m3fn: "fp8"}


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight matrix ready for the kernels.

    data: the packed values, see the module's docstring.
    shape: (out_features, in_features) of the matrix that was packed.
    scale: the packed scales of a quantised matrix, otherwise None.
    group: in_features that share a scale; 0 if all of them do, or there is none.
    """

    data: Tensor
    shape: tuple[int, int]
    scale: Tensor | None = None
    group: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device


Weight: TypeAlias = Packed | Tensor
# What the factors of a delta may be.
FactorWeight: TypeAlias = Packed | Tensor | Quantized


def pack(weight: Tensor | Quantized) -> Packed:
    """Brings a matrix into kernel order, once, at load.

    weight: [out_features, in_features], bf16 or float32, or quantised; on a CPU to int8 or int4, in groups of a
    multiple of 64 inputs or with one scale a row.
    Raises: ValueError for what is no matrix or has no kernel order.
    """
    order = torch.ops.zweave.pack.default
    if isinstance(weight, Quantized):
        if weight.device.type == "cpu":
            _check_packable(weight)
        group = 0 if weight.scale_a_row else weight.group
        return Packed(order(weight.data), weight.shape, order(weight.scale), group)
    if weight.dim() != 2:
        raise ValueError(f"pack wants a matrix, got a tensor of shape {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise ValueError(
            f"pack wants a matrix of bfloat16 or float32, or a Quantized one, not {weight.dtype}"
        )
    return Packed(order(weight), (weight.shape[0], weight.shape[1]))


def pack_or_view(weight: Tensor) -> Packed:
    """`pack`, but without a copy where the packed form is the matrix itself: elsewhere than on a CPU.

    weight: [out_features, in_features], bf16 or float32.
    """
    if weight.device.type == "cpu":
        return pack(weight)
    return Packed(weight.contiguous(), (weight.shape[0], weight.shape[1]))


def _check_packable(weight: Quantized) -> None:
    if weight.format == "fp8":
        raise ValueError("pack: no CPU kernel multiplies fp8, quantise to int8 or int4")
    if weight.group % BLOCK and not weight.scale_a_row:
        raise ValueError(f"pack: groups must be of a multiple of {BLOCK} inputs, not {weight.group}")


def unpack(packed: Packed) -> Tensor:
    """The matrix that `pack` was given, contiguous; a quantised one as the float32 values that it stands for."""
    if packed.scale is not None:
        return dequantize(unpack_quantized(packed))
    return torch.ops.zweave.unpack.default(packed.data, *packed.shape)


def unpack_quantized(packed: Packed) -> Quantized:
    """The quantised matrix that `pack` was given; its group is in_features where a row has one scale.

    Raises: ValueError if it was not quantised.
    """
    if packed.scale is None:
        raise ValueError(f"unpack_quantized: a {packed.dtype} matrix is not quantised")
    out_features, in_features = packed.shape
    columns = (in_features + 1) // 2 if packed.dtype == torch.uint8 else in_features
    group = packed.group or max(in_features, 1)
    restore = torch.ops.zweave.unpack.default
    data = restore(packed.data, out_features, columns)
    scale = restore(packed.scale, out_features, -(-in_features // group))
    return Quantized(data, scale, packed.shape, FORMATS[packed.dtype], group)


def split(weight: Weight) -> tuple[Tensor, int]:
    """What the ops take for a weight: its data and its out_features."""
    if isinstance(weight, Packed):
        return weight.data, weight.shape[0]
    return weight, weight.shape[0]


def split_factor(weight: FactorWeight) -> tuple[Tensor, Tensor | None, int]:
    """What the ops take for a factor: its data, its scales or None, and its group as in `Packed`."""
    if isinstance(weight, Packed):
        return weight.data, weight.scale, weight.group
    if isinstance(weight, Tensor):
        return weight, None, 0
    return weight.data, weight.scale, 0 if weight.scale_a_row else weight.group


def pack_width(dtype: torch.dtype) -> int:
    """Stored numbers of a row that lie side by side in a panel; of int4 a number is a byte."""
    return {torch.bfloat16: 2, torch.int8: 4, torch.uint8: 4}.get(dtype, 1)


def panel_shape(rows: int, columns: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Shape of the panels of a matrix [rows, columns]: panels, packs, PANEL, pack width; of int4 a column is a byte."""
    width = pack_width(dtype)
    # int8 comes in eight inputs, as int4 does.
    step = 8 if dtype == torch.int8 else width
    return -(-rows // PANEL), -(-columns // step) * (step // width), PANEL, width


def pack_ref(weight: Tensor) -> Tensor:
    """Semantics of the op `pack` on a CPU: weight [M, N], or the bytes of int4 [M, N / 2], to panels, zero padded."""
    rows, columns = weight.shape
    panels, packs, _, width = panel_shape(rows, columns, weight.dtype)
    padded = weight.new_zeros(panels * PANEL, packs * width)
    padded[:rows, :columns] = weight
    if weight.dtype == torch.uint8:
        eight = torch.stack([padded & 15, padded >> 4], dim=-1).view(len(padded), packs, 2, 4)
        padded = eight[:, :, 0] | eight[:, :, 1] << 4
    return padded.view(panels, PANEL, packs, width).transpose(1, 2).contiguous()


def unpack_ref(data: Tensor, out_features: int, in_features: int) -> Tensor:
    """Semantics of the op `unpack`: the inverse of `pack_ref`; a matrix (CUDA) comes back as it is."""
    if data.dim() == 2:
        return data
    panels, packs, _, width = data.shape
    rows = data.transpose(1, 2).reshape(panels * PANEL, packs * width)
    if data.dtype == torch.uint8:
        four = rows.view(len(rows), packs, 4)
        eight = torch.cat([four & 15, four >> 4], dim=-1).view(len(rows), packs * width, 2)
        rows = eight[:, :, 0] | eight[:, :, 1] << 4
    return rows[:out_features, :in_features].contiguous()
