"""The plain linear.

    y[t] = W x[t] + bias

    x [T, N]   weight [M, N]   bias [M]   ->   y [T, M]

Bytes: M N weights once, T (N + M) activations; FLOPs: 2 T M N. Up to some 16 rows on a CPU the weights bind,
and a packed weight is read as one stream. Each output is summed over its inputs in order, one by one or pair
by pair, so that a row's result does not depend on the rows beside it.
"""

import torch
from torch import Tensor

from .layout.packed import Weight, split
from .triton.checks import Factor, check_factor, check_input, check_tensor, matrix_shape, on_device_of, plain
from .triton.gemm import gemm


def linear_ref(
    x: Tensor, weight: Factor, bias: Tensor | None = None, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Semantics: y = x @ weight.T + bias in float32, then rounded once.

    x: [tokens, in_features].
    weight: [out_features, in_features], or quantised, or on a grid.
    bias: [out_features], or None.
    out_dtype: None for x's dtype.
    """
    y = x.float() @ plain(weight).T
    if bias is not None:
        y = y + bias.float()
    return y.to(out_dtype or x.dtype)


def linear_triton(
    x: Tensor, weight: Factor, bias: Tensor | None = None, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Launches the GEMM on a CUDA device (or in Triton's interpreter, on CPU tensors).

    x: [tokens, in_features], bf16, float16 or float32.
    weight: [out_features, in_features], x's dtype, or quantised with one scale a row or groups of a multiple of 64,
        or on a grid.
    bias: [out_features], x's dtype, or None.
    out_dtype: None for x's dtype, or float32.
    A row's result is the same bit for bit in every batch, and in `svf_delta_linear_triton` under slot 0.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    check_input("linear", x)
    M, _ = matrix_shape("linear", "weight", weight)
    check_factor("linear", "weight", weight, (M, x.shape[1]), x)
    if bias is not None:
        check_tensor("linear", "bias", bias, (M,), x.dtype, x)
    with on_device_of(x):
        return gemm(x, weight, bias=bias, out_dtype=out_dtype)


def linear(
    x: Tensor, weight: Weight, bias: Tensor | None = None, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Semantics: y = x @ weight.T + bias, summed in float32.

    x: [tokens, in_features], bf16 or float32; rows may lie apart.
    weight: [out_features, in_features], packed or plain, x's dtype.
    bias: [out_features], x's dtype, or None.
    out_dtype: None for x's dtype, or float32.
    Returns [tokens, out_features].
    Raises: ValueError or RuntimeError on a wrong shape, stride, dtype or device.
    """
    if len(weight.shape) != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"linear: x {list(x.shape)} and weight {list(weight.shape)} do not fit")
    data, out_features = split(weight)
    return torch.ops.zweave.linear.default(x, data, bias, out_features, out_dtype)
