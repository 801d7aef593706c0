"""Several linears in one: q, k and v, or gate and up, and the second products of their factors.

    y[t, M_g] = (sum over n of w_g[m, n] x_g[t, n]) * table[slot[t], m] + bias[m]

for the weights w_g [M_g, N_g] of each group g. The groups write consecutive columns of y. They read the same x [T, N]
(`shared`: stacked weights), or consecutive columns of it (blocks on the diagonal: the U of stacked factors). With
`silu` there are two groups of equal size, and y [T, M] is silu(y_0) * y_1, as `silu_mul` says.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .silu_mul import silu_mul_ref


def grouped_linear_ref(
    x: Tensor,
    weights: Sequence[Tensor],
    *,
    shared: bool = True,
    table: Tensor | None = None,
    slot: Tensor | None = None,
    bias: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Semantics: the formula in float32, rounded once; before the gate too, if there is one."""
    inputs = [x] * len(weights) if shared else x.split([w.shape[1] for w in weights], 1)
    y = torch.cat([part.float() @ w.float().T for part, w in zip(inputs, weights, strict=True)], 1)
    if table is not None:
        assert slot is not None
        y *= table[slot.long()]
    if bias is not None:
        y += bias.float()
    return silu_mul_ref(*y.chunk(2, 1)).to(x.dtype) if silu else y.to(x.dtype)


def grouped_delta_linear_ref(
    x: Tensor,
    weights: Sequence[Tensor],
    h: Tensor,
    u: Sequence[Tensor],
    slot: Tensor,
    *,
    bias: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Semantics: `grouped_linear_ref` of shared inputs, plus that of h and u on blocks for tokens out of slot 0."""
    y = torch.cat([x.float() @ w.float().T for w in weights], 1)
    columns = h.float().split([part.shape[1] for part in u], 1)
    delta = torch.cat([part @ w.float().T for part, w in zip(columns, u, strict=True)], 1)
    y = torch.where((slot != 0)[:, None], y + delta, y)
    if bias is not None:
        y += bias.float()
    return silu_mul_ref(*y.chunk(2, 1)).to(x.dtype) if silu else y.to(x.dtype)
