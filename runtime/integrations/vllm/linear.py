"""One linear of a model that vLLM serves: the dense weight, the factors, and a table row an adapter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from zweave.kernels import LinearMode, Packed, linear, svf_linear
from zweave.kernels.adapted_linear import compute_by_mode
from zweave.kernels.layout.packed import pack_or_view

from ...experts.slot_tables import SlotTables
from ...planner.planner import hosted_plan
from .tokens import Tokens


@dataclass(frozen=True, slots=True)
class Part:
    """A matrix of a fused linear, or this worker's shard of it.

    u: [M, R].
    vt: [R, N].
    sigma: [R] float32.
    delta_factors: vt [K, N] and u [M, K] of the components that a delta may use.
    """

    u: Packed
    vt: Packed
    sigma: Tensor
    delta_factors: tuple[Packed, Packed]

    @classmethod
    def of(cls, u: Tensor, sigma: Tensor, vt: Tensor, like: Tensor) -> "Part":
        """Factors in kernel order, with the dtype and device of `like`."""
        u, vt = u.to(like), vt.to(like)
        # Elsewhere than on a CPU all tokens take the factors.
        kept = hosted_plan((len(sigma), len(sigma)), dense=like.device.type == "cpu").delta_rank
        leading = pack_or_view(vt[:kept]), pack_or_view(u[:, :kept])
        return cls(pack_or_view(u), pack_or_view(vt), sigma.to(like.device, torch.float32), leading)


class ServedLinear:
    """A linear, fused of one or several matrices, whose tokens are computed in the mode of their own slot:

        dense     y = W x + b, for the base model
        delta     y = W x + U_K (delta[slot] * (Vt_K x)) + b, if the adapter changes at most K leading components
        factored  y = U (scale[slot] * (Vt x)) + b

    A token has one mode for all matrices of a fused linear, the most general one that any of them needs.

    dense: W [sum of M, N]; None if all tokens take the factors, those of the base model too.
    parts: the matrices, from top to bottom.
    adapters: number of adapters that the tables hold.

    tables: slot 0 is the base model's, slot 1 + i that of vLLM's adapter index i.
    scales: a table [1 + adapters, R] float32 of sigma * z for each part.
    modes: [1 + adapters] uint8, the `LinearMode` of each slot.
    """

    def __init__(self, dense: Packed | None, parts: Sequence[Part], adapters: int) -> None:
        self.dense, self.parts, self.adapters = dense, tuple(parts), adapters
        self._names = [str(index) for index in range(len(parts))]
        sigmas = {name: part.sigma for name, part in zip(self._names, parts, strict=True)}
        # Only the rank matters, so that a shard's plan is that of its matrix.
        plan = {
            name: hosted_plan((len(sigma), len(sigma)), dense is not None) for name, sigma in sigmas.items()
        }
        self.tables = SlotTables(sigmas, 1 + adapters, parts[0].sigma.device, plan)
        self.scales = [self.tables.columns(name) for name in self._names]
        self._deltas = [self.tables.delta_columns(name) for name in self._names]
        self._bounds = list(accumulate((part.u.shape[0] for part in parts), initial=0))
        for adapter in range(adapters):
            self.write(adapter, [None] * len(parts))

    def write(self, adapter: int, z: Sequence[Tensor | None]) -> None:
        """Writes the slot of an adapter index: one z [R] a part, None where it adapts nothing."""
        adapted = {name: values for name, values in zip(self._names, z, strict=True) if values is not None}
        self.tables.write(1 + adapter, self.tables.rows_of(adapted))
        # Ascending modes are ever more general: a part in dense mode has a delta of zeros and a scale of sigma.
        self.modes = self.tables.modes.amax(0).numpy()

    def __call__(self, x: Tensor, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        """y [T, sum of M] of x [T, N], each token in the mode of its own slot."""
        compute = partial(self._compute, bias=bias)
        return compute_by_mode(tokens.groups(self.modes), x, self._bounds[-1], compute)

    def base(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y of the base model."""
        if self.dense is not None:
            return linear(x, self.dense, bias)
        return self.factored(x, torch.zeros(len(x), dtype=torch.int32, device=x.device), bias)

    def factored(self, x: Tensor, slot: Tensor, bias: Tensor | None = None) -> Tensor:
        """y of x [T, N] and slot [T] int32, all tokens by the factors."""
        return self._compute(LinearMode.FACTORED, x, slot, bias)

    def _compute(self, mode: LinearMode, x: Tensor, slot: Tensor, bias: Tensor | None) -> Tensor:
        if mode == LinearMode.FACTORED:
            outputs = [
                svf_linear(x, part.vt, part.u, scale, slot, None if bias is None else bias[start:stop])
                for part, scale, start, stop in self._spans(self.scales)
            ]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        assert self.dense is not None
        y = linear(x, self.dense, bias)
        if mode == LinearMode.DELTA:
            # One dense product for all parts, so that the deltas are added afterwards.
            for part, delta, start, stop in self._spans(self._deltas):
                y[:, start:stop] += svf_linear(x, *part.delta_factors, delta, slot)
        return y

    def _spans(self, tables: Sequence[Tensor]) -> Iterator[tuple[Part, Tensor, int, int]]:
        """Each part with its table and the range of its outputs."""
        return zip(self.parts, tables, self._bounds[:-1], self._bounds[1:], strict=True)
