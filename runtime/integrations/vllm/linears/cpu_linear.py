"""One linear of a model that vLLM serves on a CPU: the dense weight, the factors, and a table row an adapter."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from zweave.kernels import LinearMode, Packed, linear, svf_linear
from zweave.kernels.adapted_linear import compute_by_mode
from zweave.kernels.layout.packed import pack_or_view

from .adapter_tables import AdapterTables
from .forms import plan_of
from .tokens import StepTokens, Tokens


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
    def of(cls, u: Tensor, sigma: Tensor, vt: Tensor, dtype: torch.dtype) -> "Part":
        """Factors in kernel order."""
        u, vt = u.to(dtype), vt.to(dtype)
        kept = plan_of(len(sigma), "all").delta_rank
        leading = pack_or_view(vt[:kept]), pack_or_view(u[:, :kept])
        return cls(pack_or_view(u), pack_or_view(vt), sigma.float(), leading)


class CpuLinear:
    """A linear, fused of one or several matrices, whose tokens are computed in the mode of their own slot:

        dense     y = W x + b, for the base model
        delta     y = W x + U_K (delta[slot] * (Vt_K x)) + b, if the adapter changes at most K leading components
        factored  y = U (scale[slot] * (Vt x)) + b

    A token has one mode for all matrices of a fused linear, the most general one that any of them needs.

    dense: W [sum of M, N].
    parts: the matrices, from top to bottom.
    adapters: number of adapters at once.
    """

    def __init__(self, dense: Packed, parts: Sequence[Part], adapters: int) -> None:
        self.dense, self.parts = dense, tuple(parts)
        sigmas = [part.sigma for part in parts]
        self.tables = AdapterTables(sigmas, [plan_of(len(sigma), "all") for sigma in sigmas], adapters)
        self._modes = self.tables.modes
        self._bounds = list(accumulate((part.u.shape[0] for part in parts), initial=0))

    def write(self, adapter: int, z: Sequence[Tensor | None]) -> None:
        """Writes the slot of an adapter index: one z [R] a part, None where it adapts nothing."""
        self.tables.write(adapter, z)
        self._modes = self.tables.modes

    def step_of(self, wrapper: Any) -> StepTokens:
        """The tokens of a punica wrapper's current step."""
        return StepTokens.of(wrapper)

    def __call__(self, x: Tensor, step: Callable[[int], Tokens], bias: Tensor | None = None) -> Tensor:
        """y [T, sum of M] of x [T, N], each token in the mode of its own slot."""
        compute = partial(self._compute, bias=bias)
        return compute_by_mode(step(len(x)).groups(self._modes), x, self._bounds[-1], compute)

    def base(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y of the base model."""
        return linear(x, self.dense, bias)

    def _compute(self, mode: LinearMode, x: Tensor, slot: Tensor, bias: Tensor | None) -> Tensor:
        if mode == LinearMode.FACTORED:
            outputs = [
                svf_linear(x, part.vt, part.u, scale, slot, None if bias is None else bias[start:stop])
                for part, scale, start, stop in self._spans(self.tables.scales)
            ]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        y = linear(x, self.dense, bias)
        if mode == LinearMode.DELTA:
            # One dense product for all parts, so that the deltas are added afterwards.
            for part, delta, start, stop in self._spans(self.tables.deltas):
                y[:, start:stop] += svf_linear(x, *part.delta_factors, delta, slot)
        return y

    def _spans(self, tables: Sequence[Tensor]) -> Iterator[tuple[Part, Tensor, int, int]]:
        """Each part with its table and the range of its outputs."""
        return zip(self.parts, tables, self._bounds[:-1], self._bounds[1:], strict=True)
