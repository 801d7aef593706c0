"""Weights in the order in which the kernels read them.

On a CPU a matrix is cut into panels of 16 outputs. Within a panel the inputs come one after the other, bf16
in pairs as `vdpbf16ps` wants them, so that a product reads its weights as one stream:

    bf16     [ceil(M / 16), ceil(N / 2), 16, 2]
    float32  [ceil(M / 16), N, 16, 1]

zero padded. On CUDA the packed form is the contiguous matrix itself.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

PANEL = 16


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight matrix ready for the kernels.

    data: the packed values, see the module's docstring.
    shape: (out_features, in_features) of the matrix that was packed.
    """

    data: Tensor
    shape: tuple[int, int]

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device


Weight: TypeAlias = Packed | Tensor


def pack(weight: Tensor) -> Packed:
    """Brings a matrix into kernel order, once, at load.

    weight: [out_features, in_features], bf16 or float32.
    """
    if weight.dim() != 2:
        raise ValueError(f"pack wants a matrix, got a tensor of shape {tuple(weight.shape)}")
    return Packed(torch.ops.zweave.pack.default(weight), (weight.shape[0], weight.shape[1]))


def unpack(packed: Packed) -> Tensor:
    """The matrix that `pack` was given, contiguous."""
    return torch.ops.zweave.unpack.default(packed.data, *packed.shape)


def split(weight: Weight) -> tuple[Tensor, int]:
    """What the ops take for a weight: its data and its out_features."""
    if isinstance(weight, Packed):
        return weight.data, weight.shape[0]
    return weight, weight.shape[0]


def pack_ref(weight: Tensor) -> Tensor:
    """Semantics of the op `pack` on a CPU: weight [M, N] to panels, zero padded."""
    group = 2 if weight.dtype == torch.bfloat16 else 1
    rows, columns = weight.shape
    panels, groups = -(-rows // PANEL), -(-columns // group)
    padded = weight.new_zeros(panels * PANEL, groups * group)
    padded[:rows, :columns] = weight
    return padded.view(panels, PANEL, groups, group).transpose(1, 2).contiguous()


def unpack_ref(data: Tensor, out_features: int, in_features: int) -> Tensor:
    """Semantics of the op `unpack`: the inverse of `pack_ref`; a matrix (CUDA) comes back as it is."""
    if data.dim() == 2:
        return data
    panels, groups, _, group = data.shape
    rows = data.transpose(1, 2).reshape(panels * PANEL, groups * group)
    return rows[:out_features, :in_features].contiguous()
