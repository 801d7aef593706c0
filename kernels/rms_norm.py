"""Root mean square norms.

    y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight

    x [T, N]   weight [N]   ->   y [T, N]

Bytes: 2 T N activations, 8 T N more with the residual. Adding to the residual stream comes with the norm that
follows it, which saves a pass over both. The stream is float32 under bf16 activations too: it grows so large
in some columns that bf16 would round away what later layers add (SmolLM2-135M, 200 tokens of text: the mean
KL to float32 is 1.1e-3 with a float32 stream, 2.1e-3 with a bf16 one). Source: Zhang and Sennrich (arXiv
1910.07467). See docs/kernels/layer.md.
"""

import torch
from torch import Tensor

from .triton.checks import check_input, check_tensor, on_device_of
from .triton.optional_triton import tl, triton
from .triton.pdl import launch_options, wait_at_start
from .triton.row_config import whole_row_config

MAX_WIDTH = 16384


def rms_norm_ref(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Semantics: x / sqrt(mean(x^2) + eps) * weight in float32, then rounded once."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def add_rms_norm_ref(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Semantics: residual += x, in place; returns rms_norm(residual) in x's dtype."""
    residual += x
    return rms_norm_ref(residual, weight, eps).to(x.dtype)


@triton.jit(do_not_specialize=["T"])
def _rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    y: tl.tensor,
    eps: tl.tensor,
    T: tl.tensor,
    N: tl.tensor,
    stride_x: tl.tensor,
    stride_residual: tl.tensor,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y[t] for BLOCK_T whole rows; with a residual, which becomes residual + x, its norm."""
    wait_at_start(PDL)
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    mask = (t < T) & (n < N)
    wide = tl.load(x + t * stride_x + n, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        wide += tl.load(residual + t * stride_residual + n, mask=mask, other=0.0)
        tl.store(residual + t * stride_residual + n, wide, mask=mask)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / N + eps)
    result = wide * scale[:, None] * tl.load(weight + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(y + t * N + n, result.to(y.dtype.element_ty), mask=mask)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Launches the norm on a CUDA device (or in Triton's interpreter, on CPU tensors).

    Arguments as in `rms_norm`, float16 too, rows of at most 16,384. Raises: ValueError on a wrong shape, stride or
    dtype, NotImplementedError on a wrong device.
    """
    _check("rms_norm", x, weight)
    return _launch(x, None, weight, eps)


def add_rms_norm_triton(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Launches the sum and its norm; as `rms_norm_triton`, with the arguments of `add_rms_norm`."""
    _check("add_rms_norm", x, weight)
    check_tensor("add_rms_norm", "residual", residual, tuple(x.shape), torch.float32, x)
    return _launch(x, residual, weight, eps)


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    T, N = x.shape
    y = x.new_empty(T, N)
    if y.numel() == 0:
        return y
    config = whole_row_config(N)
    with on_device_of(x):
        _rms_norm_kernel[(triton.cdiv(T, config.block_t),)](
            x,
            residual,
            weight,
            y,
            eps,
            T,
            N,
            x.stride(0),
            residual.stride(0) if residual is not None else 0,
            BLOCK_T=config.block_t,
            BLOCK_N=config.block_n,
            num_warps=config.num_warps,
            **launch_options(x.device.index),
        )
    return y


def _check(op: str, x: Tensor, weight: Tensor) -> None:
    check_input(op, x)
    if x.shape[1] > MAX_WIDTH:
        raise ValueError(f"{op}: rows of at most {MAX_WIDTH} numbers, not {x.shape[1]}")
    dtype = torch.float32 if weight.dtype == torch.float32 else x.dtype
    check_tensor(op, "weight", weight, (x.shape[1],), dtype, x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Semantics: y = x / sqrt(mean(x^2) + eps) * weight, in float32 until the end.

    x: [tokens, width], bf16 or float32; rows may lie apart.
    weight: [width], float32 or x's dtype.
    Returns [tokens, width] in x's dtype.
    Raises: RuntimeError on a wrong shape, stride, dtype or device.
    """
    return torch.ops.zweave.rms_norm.default(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Semantics: residual += x, in place; y = rms_norm(residual).

    x: [tokens, width], bf16 or float32; rows may lie apart.
    residual: [tokens, width], float32; rows may lie apart.
    weight: [width], float32 or x's dtype.
    Returns [tokens, width] in x's dtype.
    Raises: RuntimeError on a wrong shape, stride, dtype or device.
    """
    return torch.ops.zweave.add_rms_norm.default(x, residual, weight, eps)
