"""The gate of a gated MLP.

    y = gate / (1 + exp(-gate)) * up

    gate, up [T, I]   ->   y [T, I]

Bytes: 3 T I activations. Source: Shazeer (arXiv 2002.05202), SwiGLU.
"""

import torch
from torch import Tensor


def silu_mul_ref(gate: Tensor, up: Tensor) -> Tensor:
    """Semantics: silu(gate) * up in float32, then rounded once."""
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Semantics: y = silu(gate) * up, in float32 until the end.

    gate, up: [tokens, width], bf16 or float32, of one dtype; rows may lie apart (a fused product).
    Returns [tokens, width].
    Raises: RuntimeError on a wrong shape, stride, dtype or device.
    """
    return torch.ops.zweave.silu_mul.default(gate, up)
