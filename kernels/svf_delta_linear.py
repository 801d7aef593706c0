"""The SVF linear as the dense product and a delta of few or cheap components.

    y[t] = W x[t] + U (delta[slot[t]] * (Vt x[t])) + bias

    x [T, N]   w [M, N]   vt [K, N]   u [M, K]   delta [S, K]   slot [T]   bias [M]   ->   y [T, M]

T tokens, M out_features, N in_features, K components kept, S slots; delta = sigma * (z - 1), row 0 = 0.

On a GPU one launch computes h = delta * (Vt x) and W x + U h, whose tiles sum the delta behind the dense product and
store once. A token in slot 0 gets W x + bias, to the bit what `linear` gives, whatever h holds; tiles of such tokens
alone skip the delta. Bytes: M N weights and f K (M + N) of the factors, f = 1 in int8
and fp8, 1/2 in int4 (and 4 a scale), T (2 N + 2 K + M) activations; FLOPs: 2 T (M N + K (M + N)).
See docs/kernels/svf_delta_linear.md.
"""

import torch
from torch import Tensor

from .layout.packed import FactorWeight, Weight, split, split_factor
from .triton.checks import Factor, check_factor, check_input, check_tensor, matrix_shape, on_device_of, plain
from .triton.delta_gemm import launch_delta_gemm
from .triton.gemm import gemm
from .triton.gemm_operand import Operand


def svf_delta_linear_ref(
    x: Tensor, w: Tensor, vt: Factor, u: Factor, delta: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Semantics: y[t] = w @ x[t] + u @ (delta[slot[t]] * (vt @ x[t])) + bias in float32, then x's dtype.

    x: [tokens, in_features].
    w: [out_features, in_features].
    vt: [kept, in_features], or quantised.
    u: [out_features, kept], or quantised.
    delta: [slots, kept], sigma * (z - 1); row 0 is not read, tokens in slot 0 take w alone.
    slot: [tokens], 0 <= slot < slots.
    bias: [out_features], or None.
    Source: Transformer-Squared (arXiv 2501.06252), section 3.1, with the identity split off.
    """
    y = x.float() @ w.float().T
    delta_y = ((x.float() @ plain(vt).T) * delta.float()[slot.long()]) @ plain(u).T
    y = torch.where((slot != 0)[:, None], y + delta_y, y)
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)


def svf_delta_linear_triton(
    x: Tensor, w: Tensor, vt: Factor, u: Factor, delta: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Launches once on a CUDA device (or in Triton's interpreter, on CPU tensors).

    x: [tokens, in_features], bf16, float16 or float32.
    w: [out_features, in_features], x's dtype.
    vt: [kept, in_features], x's dtype, or quantised with one scale a row or groups of a multiple of 64.
    u: [out_features, kept], the same; of another format than vt it takes a second launch.
    delta: [slots, kept], float32; rows may lie apart.
    slot: [tokens], int32.
    bias: [out_features], x's dtype, or None.
    A token whose slot lies outside the table becomes NaN; in slot 0 it is what `linear_triton` gives, bit for bit.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    _check(x, w, vt, u, delta, slot, bias)
    with on_device_of(x):
        if delta.shape[1] == 0:
            return gemm(x, w, bias=bias)
        y = x.new_empty(len(x), len(w))
        launch_delta_gemm(y, [Operand.of(x, w)], [Operand.of(x, vt)], [u], table=delta, slot=slot, bias=bias)
        return y


def _check(
    x: Tensor, w: Tensor, vt: Factor, u: Factor, delta: Tensor, slot: Tensor, bias: Tensor | None
) -> None:
    op = "svf_delta_linear"
    check_input(op, x)
    M, K = matrix_shape(op, "u", u)
    check_tensor(op, "w", w, (M, x.shape[1]), x.dtype, x)
    check_factor(op, "vt", vt, (K, x.shape[1]), x)
    check_factor(op, "u", u, (M, K), x)
    check_tensor(op, "delta", delta, (delta.shape[0], K), torch.float32, x)
    check_tensor(op, "slot", slot, (x.shape[0],), torch.int32, x)
    if bias is not None:
        check_tensor(op, "bias", bias, (M,), x.dtype, x)


def svf_delta_linear(
    x: Tensor,
    w: Weight,
    vt: FactorWeight,
    u: FactorWeight,
    delta: Tensor,
    slot: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Semantics: y[t] = w @ x[t] + u @ (delta[slot[t]] * (vt @ x[t])) + bias.

    x: [tokens, in_features], bf16 or float32.
    w: [out_features, in_features], packed or plain, x's dtype.
    vt: [kept, in_features], packed or plain: x's dtype, or int8 or int4 (on CUDA fp8 too).
    u: [out_features, kept], the same.
    delta: [slots, kept], float32, sigma * (z - 1) of each slot; rows may lie apart. Tokens in slot 0 take w alone.
    slot: [tokens], int32, 0 <= slot < slots.
    bias: [out_features], x's dtype, or None.
    Returns [tokens, out_features] in x's dtype. Sums are float32; between the factors the values are rounded to
    x's dtype, quantised weights are not rounded further.
    Raises: ValueError or RuntimeError on a wrong shape, stride, dtype, group or device.
    Source: Transformer-Squared (arXiv 2501.06252), section 3.1, with the identity split off.
    """
    w_data, out_features = split(w)
    kept, in_features = delta.shape[-1], x.shape[-1]
    # The op itself cannot tell 31 components from 32 in packed weights.
    if (
        w.shape != (out_features, in_features)
        or vt.shape != (kept, in_features)
        or u.shape != (out_features, kept)
    ):
        raise ValueError(
            f"svf_delta_linear: x {list(x.shape)}, w {list(w.shape)}, vt {list(vt.shape)}, u {list(u.shape)} and "
            f"delta {list(delta.shape)} do not fit: want [T, N], [M, N], [K, N], [M, K] and [S, K]"
        )
    (vt_data, vt_scale, vt_group), (u_data, u_scale, u_group) = split_factor(vt), split_factor(u)
    return torch.ops.zweave.svf_delta_linear.default(
        x, w_data, vt_data, u_data, delta, slot, bias, out_features, vt_scale, u_scale, vt_group, u_group
    )
