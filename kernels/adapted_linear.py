"""A linear that experts adapt, and the modes in which it computes a token.

    dense     y[t] = W x[t] + bias
    delta     y[t] = W x[t] + U_K (delta[slot[t]] * (Vt_K x[t])) + bias
    factored  y[t] = U (scale[slot[t]] * (Vt x[t])) + bias
    merged    y[t] = W'[slot[t]] x[t] + bias

A token's slot selects its mode. All modes give the same up to rounding where the slot's expert allows them:
dense where z is 1, delta where z is 1 beyond the K leading components.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from torch import Tensor

from .layout.packed import FactorWeight, Packed, unpack
from .linear import linear
from .svf_delta_linear import svf_delta_linear
from .svf_linear import svf_linear


class LinearMode(IntEnum):
    """How a linear computes a token; the numbers are those of csrc/cpu/decoder/adapted_linear.h."""

    DENSE = 0
    DELTA = 1
    FACTORED = 2
    MERGED = 3


@dataclass(frozen=True, slots=True)
class AdaptedLinear:
    """The weights that a linear keeps resident, and the tables by which slots differ.

    dense: W [M, N], or None.
    vt, u: factors [R, N] and [M, R], or None; only those of the delta if `scale` is None, and then they may be
    quantised.
    scale: [S, R] float32, sigma * z of each slot, or None.
    delta: [S, K] float32, sigma * (z - 1) of each slot's leading components, or None.
    bias: [M], or None.
    modes: [S] uint8, the `LinearMode` of each slot; None if `scale` is all there is and every slot is factored.
    supports: [S] int32, how many leading components of each slot's delta may be other than zero; all K if None.
    merged: slot -> its own weight W' [M, N], for slots in merged mode.
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

    def __call__(self, x: Tensor, slot: Tensor, all_factored: bool = False) -> Tensor:
        """y [T, M] of x [T, N] and slot [T] int32, op by op: the tokens of each mode are one product.

        all_factored: computes every token in factored mode if the linear has the factors.
        """
        if self.modes is None or (all_factored and self.scale is not None):
            return self._pass(LinearMode.FACTORED, x, slot)
        modes = self.modes[slot.long()]
        taken = [LinearMode(mode) for mode in modes.unique().tolist()]
        if len(taken) == 1:
            return self._pass(taken[0], x, slot)
        y = x.new_empty(x.shape[0], self.shape[0])
        for mode in taken:
            rows = (modes == mode).nonzero().flatten()
            y[rows] = self._pass(mode, x[rows], slot[rows])
        return y

    def _pass(self, mode: LinearMode, x: Tensor, slot: Tensor) -> Tensor:
        if (
            mode == LinearMode.FACTORED
            and self.scale is not None
            and self.vt is not None
            and self.u is not None
        ):
            return svf_linear(x, self.vt, self.u, self.scale, slot, self.bias)
        if mode == LinearMode.DENSE and self.dense is not None:
            return linear(x, self.dense, self.bias)
        if mode == LinearMode.DELTA and self.dense is not None and self.delta is not None:
            return svf_delta_linear(x, self.dense, *self._leading(), self.delta, slot, self.bias)
        if mode == LinearMode.MERGED:
            return self._pass_merged(x, slot)
        raise RuntimeError(f"a slot is in mode {mode.name}, for which the linear has no weights")

    def _pass_merged(self, x: Tensor, slot: Tensor) -> Tensor:
        y = x.new_empty(x.shape[0], self.shape[0])
        for own in slot.unique().tolist():
            rows = (slot == own).nonzero().flatten()
            y[rows] = linear(x[rows], self.merged[own], self.bias)
        return y

    def _leading(self) -> tuple[FactorWeight, FactorWeight]:
        """The factors of the K leading components."""
        assert self.delta is not None and self.vt is not None and self.u is not None
        kept = self.delta.shape[1]
        if kept == self.vt.shape[0]:
            return self.vt, self.u
        return unpack(self.vt)[:kept].contiguous(), unpack(self.u)[:, :kept].contiguous()
