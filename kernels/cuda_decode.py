"""Linears of a few tokens on CUDA, in C++, for decode steps.

Nothing in the engine takes them yet: on CUDA its linears are Triton's at any number of tokens. Tests and
`zweave bench gpu-linear` call these ops by name.

    linear_decode             y[t] = W x[t] + bias
    svf_linear_decode         y[t] = U (scale[slot[t]] * (Vt x[t])) + bias
    svf_delta_linear_decode   y[t] = W x[t] + U (delta[slot[t]] * (Vt x[t])) + bias

    x [T, N]   w [M, N]   vt [R, N]   u [M, R]   scale, delta [S, R]   slot [T]   bias [M]   ->   y [T, M]

Letters as in svf_linear.py. Bytes: the weights once, for every 32 tokens. One launch for the plain linear, two for
the others; on sm_90 and newer the second begins while the first runs. The ops exist where the extension was built
with CUDA. Any number of tokens gives right results and the same bits a row; beyond `DECODE_TOKENS` Triton's larger
tiles read less. See docs/kernels/cuda_decode.md and csrc/cuda.
"""

import torch
from torch import Tensor

import zweave.kernels._C  # noqa: F401  defines the ops, where they were built

DECODE_TOKENS = 32


def is_built() -> bool:
    """Whether the extension was built with CUDA."""
    return hasattr(torch.ops.zweave, "svf_linear_decode")


def takes(x: Tensor) -> bool:
    """Whether the decode kernels are made for x, [tokens, in_features]: few tokens in bf16 on CUDA.

    Nothing in the engine asks yet. A row's bits do not depend on its batch on either side of the limit, but the two
    sides sum in different orders, so an engine that changed sides with the batch would change a request's bits.
    """
    return x.is_cuda and x.dtype == torch.bfloat16 and x.shape[0] <= DECODE_TOKENS and is_built()


def linear_decode(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Semantics: y[t] = weight @ x[t] + bias, summed in float32.

    x: [tokens, in_features], bf16; rows may lie apart.
    weight: [out_features, in_features], plain, bf16.
    bias: [out_features], bf16, or None.
    Returns [tokens, out_features], bf16.
    Raises: RuntimeError on a wrong shape, stride, dtype or device; NotImplementedError below sm_80 or without CUDA.
    """
    return _op("linear_decode")(x, weight, bias)


def svf_linear_decode(
    x: Tensor, vt: Tensor, u: Tensor, scale: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Semantics: y[t] = u @ (scale[slot[t]] * (vt @ x[t])) + bias; a token whose slot lies outside the table: NaN.

    Arguments as in `svf_linear`, bf16, weights plain.
    Between the products the values are rounded to bf16, after the scale. Raises as `linear_decode`.
    """
    return _op("svf_linear_decode")(x, vt, u, scale, slot, bias)


def svf_delta_linear_decode(
    x: Tensor, w: Tensor, vt: Tensor, u: Tensor, delta: Tensor, slot: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Semantics: y[t] = w @ x[t] + u @ (delta[slot[t]] * (vt @ x[t])) + bias; tokens in slot 0 get w @ x[t] + bias.

    w: [out_features, in_features], plain, bf16.
    vt: [components, in_features], plain, bf16.
    u: [out_features, components], plain, bf16.
    delta: [slots, components], float32.
    With components in multiples of 8 a token in slot 0 gets the bits of `linear_decode`. Otherwise as
    `svf_linear_decode`.
    """
    return _op("svf_delta_linear_decode")(x, w, vt, u, delta, slot, bias)


def _op(name: str) -> torch._ops.OpOverload:
    if not is_built():
        raise NotImplementedError(
            f"{name}: zweave was built without CUDA; install it where nvcc and a GPU build are"
        )
    return getattr(torch.ops.zweave, name).default


if is_built():

    @torch.library.register_fake("zweave::linear_decode")
    def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x.new_empty(x.shape[0], weight.shape[0])

    @torch.library.register_fake("zweave::svf_linear_decode")
    def _svf_linear_fake(
        x: Tensor, vt: Tensor, u: Tensor, scale: Tensor, slot: Tensor, bias: Tensor | None
    ) -> Tensor:
        return x.new_empty(x.shape[0], u.shape[0])

    @torch.library.register_fake("zweave::svf_delta_linear_decode")
    def _svf_delta_linear_fake(
        x: Tensor, w: Tensor, vt: Tensor, u: Tensor, delta: Tensor, slot: Tensor, bias: Tensor | None
    ) -> Tensor:
        return x.new_empty(x.shape[0], u.shape[0])
