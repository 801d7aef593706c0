"""The gate of a gated MLP.

    y = gate / (1 + exp(-gate)) * up

    gate, up [T, I]   ->   y [T, I]

Bytes: 3 T I activations. Source: Shazeer (arXiv 2002.05202), SwiGLU. See docs/kernels/layer.md.
"""

import torch
from torch import Tensor

from .triton.checks import check_input, check_tensor, on_device_of
from .triton.optional_triton import tl, triton
from .triton.pdl import launch_options, wait_at_start
from .triton.row_config import row_config


def silu_mul_ref(gate: Tensor, up: Tensor) -> Tensor:
    """Semantics: silu(gate) * up in float32, then rounded once."""
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)


@triton.jit
def _silu_mul_kernel(
    gate: tl.tensor,
    up: tl.tensor,
    y: tl.tensor,
    N: tl.tensor,
    stride_gate: tl.tensor,
    stride_up: tl.tensor,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y[t, n] for a tile of one row."""
    wait_at_start(PDL)
    t = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    g = tl.load(gate + t * stride_gate + n, mask=n < N, other=0.0).to(tl.float32)
    u = tl.load(up + t * stride_up + n, mask=n < N, other=0.0).to(tl.float32)
    result = g / (1.0 + tl.exp(-g)) * u
    tl.store(y + t * N + n, result.to(y.dtype.element_ty), mask=n < N)


def silu_mul_triton(gate: Tensor, up: Tensor) -> Tensor:
    """Launches the gate on a CUDA device (or in Triton's interpreter, on CPU tensors).

    Arguments as in `silu_mul`, float16 too. Raises: ValueError on a wrong shape, stride or dtype,
    NotImplementedError on a wrong device.
    """
    check_input("silu_mul", gate)
    check_tensor("silu_mul", "up", up, tuple(gate.shape), gate.dtype, gate)
    T, N = gate.shape
    y = gate.new_empty(T, N)
    if y.numel() == 0:
        return y
    config = row_config(N)
    with on_device_of(gate):
        _silu_mul_kernel[(T, triton.cdiv(N, config.block_n))](
            gate,
            up,
            y,
            N,
            gate.stride(0),
            up.stride(0),
            BLOCK_N=config.block_n,
            num_warps=config.num_warps,
            **launch_options(gate.device.index),
        )
    return y


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Semantics: y = silu(gate) * up, in float32 until the end.

    gate, up: [tokens, width], bf16 or float32, of one dtype; rows may lie apart (a fused product).
    Returns [tokens, width].
    Raises: RuntimeError on a wrong shape, stride, dtype or device.
    """
    return torch.ops.zweave.silu_mul.default(gate, up)
