"""Deltas over any components of a decomposition, not only the leading ones.

    y[t] = W x[t] + U[:, index] (delta[slot[t]] * (Vt[index] x[t])) + bias

All experts of a table share the factors of a delta, so `index` is the union of the components that any of them
changes; an expert's delta is zero at those it leaves alone. The gathered factors are matrices like others, to be
quantised and packed once, and the delta over them is an ordinary one: no kernel follows an index.
"""

import torch
from torch import Tensor


def gather_components(u: Tensor, vt: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Semantics: u[:, index] and vt[index], contiguous.

    u: [out_features, rank].
    vt: [rank, in_features].
    index: [kept] int64, each component at most once, in the order of the columns of `delta`.
    Returns u [out_features, kept] and vt [kept, in_features].
    Raises: ValueError if the factors do not fit each other or an index is not among the components.
    """
    if u.dim() != 2 or vt.dim() != 2 or u.shape[1] != vt.shape[0]:
        raise ValueError(
            f"gather_components: u {list(u.shape)} and vt {list(vt.shape)} do not share their rank"
        )
    if index.dim() != 1 or index.dtype != torch.int64:
        raise ValueError(
            f"gather_components: index must be a vector of int64, not {list(index.shape)} {index.dtype}"
        )
    kept = index.numel()
    if kept and not 0 <= int(index.min()) <= int(index.max()) < vt.shape[0]:
        raise ValueError(f"gather_components: index must lie in the {vt.shape[0]} components")
    if index.unique().numel() != kept:
        raise ValueError("gather_components: index names a component twice")
    return u.index_select(1, index), vt.index_select(0, index)
