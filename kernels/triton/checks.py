"""Checks that the Triton launchers share: device, shape, stride and dtype of every operand."""

from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor

from ..layout.grid_panels import GridPanels
from ..layout.quantize import Quantized, dequantize
from .optional_triton import INTERPRETED

Factor: TypeAlias = Tensor | Quantized | GridPanels
TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# A step of a GEMM lies within a group, see gemm_config.step_config.
GROUP_UNIT = 64


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: makes that x's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def plain(weight: Factor) -> Tensor:
    """The factor's values in float32, for the references."""
    if isinstance(weight, GridPanels):
        return weight.values()
    return dequantize(weight) if isinstance(weight, Quantized) else weight.float()


def check_device(op: str, x: Tensor) -> None:
    """Raises NotImplementedError unless Triton kernels can run on x's device."""
    if x.is_cuda:
        capability = torch.cuda.get_device_capability(x.device)
        if capability < (8, 0):
            name = torch.cuda.get_device_name(x.device)
            arch = "sm_{}{}".format(*capability)
            raise NotImplementedError(f"{op}: {name} is {arch}, {x.dtype} kernels need sm_80 or newer")
    elif not INTERPRETED:
        raise NotImplementedError(f"{op}: no Triton kernel for device {x.device} and {x.dtype}, CUDA only")


def check_input(op: str, x: Tensor) -> None:
    """x: the tokens [T, N], whose dtype and device the other operands share."""
    if x.dtype not in TRITON_DTYPES:
        raise ValueError(f"{op}: x on {x.device} must be bfloat16, float16 or float32, not {x.dtype}")
    check_device(op, x)
    if x.dim() != 2:
        raise ValueError(f"{op}: x must be a matrix, not {list(x.shape)}")
    _check_stride(op, "x", x)


def check_tensor(
    op: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor
) -> None:
    """Raises ValueError unless the tensor has this shape and dtype, x's device, and no gaps within a row."""
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != x.device:
        raise ValueError(
            f"{op}: {name} must be {list(shape)} {dtype} on {x.device}, "
            f"not {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
        )
    _check_stride(op, name, tensor)


def check_factor(op: str, name: str, weight: Factor, shape: tuple[int, int], x: Tensor) -> None:
    """As check_tensor, for a plain matrix of x's dtype, a quantised one, or one on a grid."""
    if isinstance(weight, Tensor):
        check_tensor(op, name, weight, shape, x.dtype, x)
        return
    if weight.shape != shape or weight.device != x.device:
        raise ValueError(
            f"{op}: {name} must be {list(shape)} on {x.device}, not {list(weight.shape)} on {weight.device}"
        )
    if isinstance(weight, Quantized) and not weight.scale_a_row and weight.group % GROUP_UNIT:
        raise ValueError(
            f"{op}: {name} has groups of {weight.group} inputs, the kernels want one scale a row or groups of a "
            f"multiple of {GROUP_UNIT}"
        )


def matrix_shape(op: str, name: str, weight: Factor) -> tuple[int, int]:
    """Rows and columns; raises ValueError for anything but a matrix."""
    if len(weight.shape) != 2:
        raise ValueError(f"{op}: {name} must be a matrix, not {list(weight.shape)}")
    return weight.shape[0], weight.shape[1]


def _check_stride(op: str, name: str, tensor: Tensor) -> None:
    if tensor.numel() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{op}: {name} must be contiguous in its last dimension")
