"""A linear that experts adapt, and the modes in which it computes a token.

    dense     y[t] = W x[t] + bias
    delta     y[t] = W x[t] + U_K (delta[slot[t]] * (Vt_K x[t])) + bias
    factored  y[t] = U (scale[slot[t]] * (Vt x[t])) + bias
    merged    y[t] = W'[slot[t]] x[t] + bias

A token's slot selects its mode. All modes give the same up to rounding where the slot's expert allows them:
dense where z is 1, delta where z is 1 beyond the K leading components. The tokens of a batch are grouped by mode,
each group is one product, and the results are scattered back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from . import _C
from .component_pages import ComponentPages
from .layout.packed import FactorWeight, Packed, unpack
from .linear import linear
from .svf_delta_linear import svf_delta_linear
from .svf_linear import svf_linear


class LinearMode(IntEnum):
    """How a linear computes a token; the numbers are those of csrc/cpu/gemm/linear.h."""

    DENSE = 0
    DELTA = 1
    FACTORED = 2
    MERGED = 3


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """The tokens of a batch that a linear computes in one mode.

    mode: the mode.
    index: [n] int64, positions of the tokens in the batch, or None for all of them.
    slot: [n] int32, the slot of each.
    """

    mode: LinearMode
    index: Tensor | None
    slot: Tensor


def group_by_mode(
    modes: Tensor, slot: Tensor, device: torch.device | str | None = None
) -> tuple[TokenGroup, ...]:
    """Groups the tokens of a batch by mode.

    modes: [T] uint8, the `LinearMode` of each token.
    slot: [T] int32, the slot of each token, on the device of `modes`.
    device: of the groups' tensors, by default that of `slot`.
    Returns a group for each mode that occurs, in ascending order.
    """
    device = slot.device if device is None else torch.device(device)
    found = [LinearMode(mode) for mode in modes.unique().tolist()]
    if len(found) == 1:
        return (TokenGroup(found[0], None, slot.to(device)),)
    indices = [(modes == mode).nonzero().flatten() for mode in found]
    return tuple(
        TokenGroup(mode, index.to(device), slot[index].to(device))
        for mode, index in zip(found, indices, strict=True)
    )


def compute_by_mode(
    groups: Sequence[TokenGroup],
    x: Tensor,
    out_features: int,
    compute: Callable[[LinearMode, Tensor, Tensor], Tensor],
) -> Tensor:
    """Computes each group in its mode and scatters the results back.

    x: [T, in_features].
    compute: (mode, x [n, in_features], slot [n]) -> y [n, out_features].
    Returns y [T, out_features].
    """
    if len(groups) == 1 and groups[0].index is None:
        return compute(groups[0].mode, x, groups[0].slot)
    y = x.new_empty(len(x), out_features)
    for group in groups:
        assert group.index is not None  # a group of all tokens is alone
        y.index_copy_(0, group.index, compute(group.mode, x[group.index], group.slot))
    return y


@dataclass(frozen=True, slots=True)
class AdaptedLinear:
    """The weights that a linear keeps resident, and the tables that differ by slot.

    shape: (out_features M, in_features N).
    dense: W [M, N], or None.
    vt: [R, N], or None; [K, N] and perhaps quantised if `scale` is None.
    u: [M, R], or None; [M, K] and perhaps quantised if `scale` is None.
    scale: [S, R] float32, sigma * z of each slot, or None.
    delta: [S, K] float32, sigma * (z - 1) of each slot's leading components, or None.
    bias: [M], or None.
    modes: [S] uint8, the `LinearMode` of each slot; None if `scale` is all there is and every slot is factored.
    supports: [S] int32, how many leading components of each slot's delta may be other than zero; all K if None.
    merged: slot -> its own weight W' [M, N], for slots in merged mode.
    delta_factors: vt [K, N] and u [M, K] of the delta; cut out of `vt` and `u` at each call if None.
    pages: components that single slots bring along, in any mode, on a CPU; None for none.
    rest: vt [L, N] and u [M, L] of the last L of the K components of `delta`, in a lower precision than the leading
        ones, which `vt` and `u` then hold; on a CPU, without `scale`.
    """

    shape: tuple[int, int]
    dense: Packed | None
    vt: Packed | None
    u: Packed | None
    scale: Tensor | None
    delta: Tensor | None
    bias: Tensor | None
    modes: Tensor | None
    supports: Tensor | None = None
    merged: dict[int, Packed] = field(default_factory=dict)
    delta_factors: tuple[Packed, Packed] | None = None
    pages: ComponentPages | None = None
    rest: tuple[Packed, Packed] | None = None

    def __call__(self, x: Tensor, slot: Tensor, all_factored: bool = False) -> Tensor:
        """y [T, M] of x [T, N] and slot [T] int32, op by op.

        all_factored: computes every token in factored mode if the linear has the factors.
        """
        if self.pages is not None or self.rest is not None:
            return self.native().run(x, slot, all_factored)
        if self.modes is None or (all_factored and self.scale is not None):
            return self.compute(LinearMode.FACTORED, x, slot)
        return self.compute_groups(group_by_mode(self.modes[slot.long()], slot), x)

    def native(self) -> _C.AdaptedLinear:
        """The same for the native decoder, sharing all tensors; RuntimeError if they do not fit one another."""
        modes = self.modes
        if modes is None:
            assert self.scale is not None
            modes = torch.full((self.scale.shape[0],), LinearMode.FACTORED, dtype=torch.uint8)
        rest_vt, rest_u = self.rest or (None, None)
        linear = _C.AdaptedLinear(
            in_features=self.shape[1],
            out_features=self.shape[0],
            dense=None if self.dense is None else self.dense.data,
            vt=None if self.vt is None else self.vt.data,
            u=None if self.u is None else self.u.data,
            scale=self.scale,
            delta=self.delta,
            bias=self.bias,
            modes=modes,
            supports=self.supports,
            vt_scale=None if self.vt is None else self.vt.scale,
            u_scale=None if self.u is None else self.u.scale,
            vt_group=0 if self.vt is None else self.vt.group,
            u_group=0 if self.u is None else self.u.group,
            pages=None if self.pages is None else self.pages.native(),
            rest_rank=0 if rest_vt is None else rest_vt.shape[0],
            rest_vt=None if rest_vt is None else rest_vt.data,
            rest_vt_scale=None if rest_vt is None else rest_vt.scale,
            rest_vt_group=0 if rest_vt is None else rest_vt.group,
            rest_u=None if rest_u is None else rest_u.data,
            rest_u_scale=None if rest_u is None else rest_u.scale,
            rest_u_group=0 if rest_u is None else rest_u.group,
        )
        for slot, weight in self.merged.items():
            linear.set_merged(slot, weight.data)
        return linear

    def base(self, x: Tensor) -> Tensor:
        """y [T, M] of x [T, N] of the base model, W x + bias."""
        assert self.dense is not None
        return linear(x, self.dense, self.bias)

    def compute_groups(self, groups: Sequence[TokenGroup], x: Tensor) -> Tensor:
        """y [T, M] of x [T, N], the tokens grouped already: for callers that group once for many linears."""
        return compute_by_mode(groups, x, self.shape[0], self.compute)

    def compute(self, mode: LinearMode, x: Tensor, slot: Tensor) -> Tensor:
        """y [n, M] of x [n, N] and slot [n] int32, all in one mode; RuntimeError if that has no weights."""
        if (
            mode == LinearMode.FACTORED
            and self.scale is not None
            and self.vt is not None
            and self.u is not None
        ):
            return svf_linear(x, self.vt, self.u, self.scale, slot, self.bias)
        if mode == LinearMode.DENSE and self.dense is not None:
            return self.base(x)
        if mode == LinearMode.DELTA and self.dense is not None and self.delta is not None:
            return svf_delta_linear(x, self.dense, *self._leading_factors(), self.delta, slot, self.bias)
        if mode == LinearMode.MERGED:
            return self._compute_merged(x, slot)
        raise RuntimeError(f"a slot is in mode {mode.name}, for which the linear has no weights")

    def _compute_merged(self, x: Tensor, slot: Tensor) -> Tensor:
        y = x.new_empty(x.shape[0], self.shape[0])
        for own in slot.unique().tolist():
            rows = (slot == own).nonzero().flatten()
            y[rows] = linear(x[rows], self.merged[own], self.bias)
        return y

    def _leading_factors(self) -> tuple[FactorWeight, FactorWeight]:
        """vt and u of the K leading components."""
        if self.delta_factors is not None:
            return self.delta_factors
        assert self.delta is not None and self.vt is not None and self.u is not None
        kept = self.delta.shape[1]
        if kept == self.vt.shape[0]:
            return self.vt, self.u
        return unpack(self.vt)[:kept].contiguous(), unpack(self.u)[:, :kept].contiguous()
