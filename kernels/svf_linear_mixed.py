"""The factored SVF linear under mixtures that are made in the kernel, one a token.

    y[t] = U (scale[t] * (Vt x[t])) + bias        scale[t] = sum over e of alpha[t, e] * table[e]

    x [T, N]   vt [R, N]   u [M, R]   table [E, R]   alpha [T, E]   bias [M]   ->   y [T, M]

For mixtures that change with every token, or that are too many to have a row of the bank each: E rows serve any
number of them. The epilogue of the first product reads E rows of its tile's components, from cache, and makes E
multiply-adds a value where the product made N: up to some 16 experts that is nothing. See docs/kernels/svf_linear.md.

A row of the table is sigma * z of an expert, or any linear function of it. Renormalisation is not linear: an expert
that asks for it must be folded in beforehand, as alpha divided by the mixture's denominator.
"""

import torch
from torch import Tensor

from .triton.checks import Factor, check_factor, check_input, check_tensor, matrix_shape, on_device_of, plain
from .triton.gemm import product


def svf_linear_mixed_ref(
    x: Tensor, vt: Factor, u: Factor, table: Tensor, alpha: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Semantics: y[t] = u @ ((alpha[t] @ table) * (vt @ x[t])) + bias, in float32 throughout, then x's dtype.

    x: [tokens, in_features]; vt: [rank, in_features]; u: [out_features, rank]; table: [experts, rank];
    alpha: [tokens, experts]; bias: [out_features] or None. vt and u may be quantised.
    Source: Transformer-Squared (arXiv 2501.06252), sections 3.1 and 3.2.
    """
    projected = x.float() @ plain(vt).T
    y = (projected * (alpha.float() @ table.float())) @ plain(u).T
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)


def svf_linear_mixed_triton(
    x: Tensor, vt: Factor, u: Factor, table: Tensor, alpha: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Launches both products on a CUDA device (or in Triton's interpreter, on CPU tensors).

    x: [tokens, in_features], bf16, float16 or float32.
    vt: [rank, in_features], u: [out_features, rank]: x's dtype, or quantised as `svf_linear_triton` takes it.
    table: [experts, rank], float32, sigma * z of each expert; rows may lie apart.
    alpha: [tokens, experts], float32.
    bias: [out_features], x's dtype, or None.
    The experts are added in their order, as `mix` does.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    op = "svf_linear_mixed"
    check_input(op, x)
    M, R = matrix_shape(op, "u", u)
    check_factor(op, "vt", vt, (R, x.shape[1]), x)
    check_factor(op, "u", u, (M, R), x)
    check_tensor(op, "table", table, (table.shape[0], R), torch.float32, x)
    check_tensor(op, "alpha", alpha, (x.shape[0], table.shape[0]), torch.float32, x)
    if bias is not None:
        check_tensor(op, "bias", bias, (M,), x.dtype, x)
    with on_device_of(x):
        return product(product(x, vt, table=table, alpha=alpha), u, bias=bias)
