"""The factored SVF linear: one pair of dense products, whatever the number of experts in the batch.

    y[t] = U (scale[slot[t]] * (Vt x[t])) + bias

    x [T, N]   vt [R, N]   u [M, R]   scale [S, R]   slot [T]   bias [M]   ->   y [T, M]

T tokens, M out_features, N in_features, R = min(M, N) or fewer components, S slots.

An expert only changes the scale between two products whose matrices all experts share, so no weights are
gathered and no tokens sorted. In Triton both are launches of one kernel (triton/gemm.py): the first ends with the
slot's row of the scale, the second with the bias. Bytes: R (M + N) weights, T (N + 2 R + M) activations, R float32 a
slot in use; FLOPs: 2 T R (M + N). See docs/kernels/svf_linear.md.
"""

import torch
from torch import Tensor

from .layout.packed import Weight, split
from .triton.checks import Factor, check_factor, check_input, check_tensor, matrix_shape, on_device_of, plain
from .triton.gemm import gemm

# What the CPU takes; Triton takes float16 too.
DTYPES = (torch.bfloat16, torch.float32)


def svf_linear_ref(
    x: Tensor, vt: Factor, u: Factor, scale: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Semantics: y[t] = u @ (scale[slot[t]] * (vt @ x[t])) + bias, in float32 throughout, then x's dtype.

    x: [tokens, in_features].
    vt: [rank, in_features], or quantised.
    u: [out_features, rank], or quantised.
    scale: [slots, rank], sigma * z.
    slot: [tokens], 0 <= slot < slots.
    bias: [out_features], or None.
    Source: Transformer-Squared (arXiv 2501.06252), section 3.1, with scale = sigma * z.
    """
    projected = x.float() @ plain(vt).T
    y = (projected * scale.float()[slot.long()]) @ plain(u).T
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)


def svf_linear_triton(
    x: Tensor, vt: Factor, u: Factor, scale: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Launches both GEMMs on a CUDA device (or in Triton's interpreter, on CPU tensors).

    Arguments as in `svf_linear`; x may be float16 too; vt and u are plain, or quantised with one scale a row or
    groups of a multiple of 64. A token whose slot lies outside the table becomes NaN.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    _check(x, vt, u, scale, slot, bias)
    with on_device_of(x):
        return gemm(gemm(x, vt, table=scale, slot=slot), u, bias=bias)


def _check(x: Tensor, vt: Factor, u: Factor, scale: Tensor, slot: Tensor, bias: Tensor | None) -> None:
    op = "svf_linear"
    check_input(op, x)
    M, R = matrix_shape(op, "u", u)
    check_factor(op, "vt", vt, (R, x.shape[1]), x)
    check_factor(op, "u", u, (M, R), x)
    check_tensor(op, "scale", scale, (scale.shape[0], R), torch.float32, x)
    check_tensor(op, "slot", slot, (x.shape[0],), torch.int32, x)
    if bias is not None:
        check_tensor(op, "bias", bias, (M,), x.dtype, x)


def svf_linear(
    x: Tensor, vt: Weight, u: Weight, scale: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Semantics: y[t] = u @ (scale[slot[t]] * (vt @ x[t])) + bias.

    x: [tokens, in_features], bf16 or float32.
    vt: [rank, in_features], packed or plain, x's dtype.
    u: [out_features, rank], packed or plain, x's dtype.
    scale: [slots, rank], float32, sigma * z of each slot; rows may lie apart, as in a slice of a wider table.
    slot: [tokens], int32, 0 <= slot < slots.
    bias: [out_features], x's dtype, or None.
    Returns [tokens, out_features] in x's dtype. Sums are float32; between the products the values are rounded
    to x's dtype. Differentiable in x, scale and bias for plain vt and u, which stay frozen.
    Raises: ValueError or RuntimeError on a wrong shape, stride, dtype or device.
    Source: Transformer-Squared (arXiv 2501.06252), section 3.1.
    """
    vt_data, _ = split(vt)
    u_data, out_features = split(u)
    rank, in_features = scale.shape[-1], x.shape[-1]
    # The op itself cannot tell a rank of 31 from one of 32 in packed weights.
    if tuple(vt.shape) != (rank, in_features) or tuple(u.shape) != (out_features, rank):
        raise ValueError(
            f"svf_linear: x {list(x.shape)}, vt {list(vt.shape)}, u {list(u.shape)} and scale "
            f"{list(scale.shape)} do not fit: want [T, N], [R, N], [M, R] and [S, R]"
        )
    return torch.ops.zweave.svf_linear.default(x, vt_data, u_data, scale, slot, bias, out_features)
