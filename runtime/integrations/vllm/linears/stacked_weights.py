"""The weights that a linear on a GPU keeps, as its op takes them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zweave.kernels import Stack, quantize, together

from ....planner.plan import MatrixPlan
from .adapter_tables import AdapterTables


class StackedWeights(NamedTuple):
    """The weights of matrices one above the other, and what differs by slot. In the order of the op's arguments.

    dense: W [sum of M, N], or None
    vt, u: the factors, vt [sum of R, N] and u [M, R] of each; of the deltas alone if there is no scale
    scale: [S, sum of R] float32, or None
    delta: [S, sum of K] float32
    delta_rank: K of each
    vt_scale, u_scale: [sum of K, 1] and [M, 1] of each, where vt and u are int8; else None and none
    """

    dense: Tensor | None
    vt: Tensor
    u: list[Tensor]
    scale: Tensor | None
    delta: Tensor
    delta_rank: list[int]
    vt_scale: Tensor | None
    u_scale: list[Tensor]


def stacked_weights(
    dense: Tensor,
    factors: Sequence[tuple[Tensor, Tensor, Tensor]],
    plans: Sequence[MatrixPlan],
    tables: AdapterTables,
) -> StackedWeights:
    """What the plans keep, on the device and in the dtype of W; the plans keep the same of each matrix.

    factors: u [M, R], sigma [R] and vt [R, N] of each matrix, from top to bottom
    """
    plan = plans[0]
    vt, u = [], []
    for (of_u, _, of_vt), each in zip(factors, plans, strict=True):
        kept = each.rank if each.factored else each.delta_rank
        vt.append(of_vt[:kept].to(dense.device))
        u.append(of_u[:, :kept].to(dense.device))
    rest = (
        tables.scale if plan.factored else None,
        tables.delta,
        [each.delta_rank for each in plans],
    )
    w = dense if plan.dense else None
    if plan.format is None:
        whole = Stack.of([each.to(dense.dtype) for each in vt]).whole
        return StackedWeights(w, whole, list(together([each.to(dense.dtype) for each in u])), *rest, None, [])
    vt_bytes, u_bytes = quantize(torch.cat(vt), plan.format), [quantize(each, plan.format) for each in u]
    u_data, u_scale = [each.data for each in u_bytes], [each.scale for each in u_bytes]
    return StackedWeights(w, vt_bytes.data, u_data, *rest, vt_bytes.scale, u_scale)
