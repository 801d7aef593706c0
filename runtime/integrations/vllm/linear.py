"""One linear of a served model: the dense weight, the factors, and tables of scales with a row an adapter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from zweave.kernels import LinearMode, linear, pack, svf_linear
from zweave.kernels.layout.packed import Weight

from ..modes import DELTA, pass_through
from .tokens import Tokens


@dataclass(frozen=True, slots=True)
class Part:
    """A matrix of a fused linear: u [M, R] and vt [R, N] of this worker, and sigma [R] float32.

    leading: vt and u of the components that a delta may use; None where all tokens take the factors.
    """

    u: Weight
    vt: Weight
    sigma: Tensor
    leading: tuple[Weight, Weight] | None

    @classmethod
    def of(cls, u: Tensor, sigma: Tensor, vt: Tensor, like: Tensor) -> "Part":
        """Factors in the dtype and on the device of `like`, in the order in which the kernels read them."""
        u, vt, kept = u.to(like), vt.to(like), DELTA.components(len(sigma))
        leading = (ready(vt[:kept]), ready(u[:, :kept])) if like.device.type == "cpu" else None
        return cls(ready(u), ready(vt), sigma.to(like.device, torch.float32).clone(), leading)


class ServedLinear:
    """Semantics, each token by the mode of its own row of the tables:

        dense     y = W x + b, where the row is the base's
        delta     y = W x + U_K (delta[slot] * (Vt_K x)) + b, where it differs in no more than K leading components
        factored  y = U (scale[slot] * (Vt x)) + b

    dense: W [sum of M, N]; None: all take the factors, the base by the last row of the table.
    parts: the matrices that lie in it one below the other.
    rows: adapters that the tables hold; one more row is the base's.

    table: [rows + 1, sum of R] float32, sigma * z. The last row, sigma, is what index -1 means.
    modes: [rows + 1] uint8.
    """

    def __init__(self, dense: Weight | None, parts: Sequence[Part], rows: int) -> None:
        self.dense, self.parts = dense, tuple(parts)
        sigma = torch.cat([part.sigma for part in parts])
        self.table = sigma.repeat(rows + 1, 1)
        ranks = [len(part.sigma) for part in parts]
        self.scales = self.table.split(ranks, dim=1)
        self._base = self.table[rows].split(ranks)
        self._deltas = [sigma.new_zeros(rows + 1, DELTA.components(rank)) for rank in ranks]
        self._least = LinearMode.FACTORED if dense is None else LinearMode.DENSE
        self.modes = np.full(rows + 1, self._least, dtype=np.uint8)
        self._outputs = np.cumsum([0, *(part.u.shape[0] for part in parts)]).tolist()

    def write(self, row: int, z: Sequence[Tensor | None]) -> None:
        """Gives an adapter its row: one z [R] a part, None where it adapts nothing."""
        mode = self._least
        for scale, delta, base, values in zip(self.scales, self._deltas, self._base, z, strict=True):
            sigma = base.double()
            # As the engine has it: the product in float64, then rounded once.
            scaled = sigma if values is None else sigma * values.to(base.device).double()
            scale[row].copy_(scaled.float())
            delta[row].copy_((scaled - sigma)[: delta.shape[1]].float())
            differs = (scaled != sigma).nonzero().flatten().tolist()
            if differs:
                mode = max(mode, LinearMode.DELTA if differs[-1] < delta.shape[1] else LinearMode.FACTORED)
        self.modes[row] = mode

    def __call__(self, x: Tensor, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        """y [T, sum of M] of x [T, N]; each token in the mode of its own row."""
        return pass_through(tokens.groups(self.modes), x, self._outputs[-1], partial(self._pass, bias=bias))

    def base(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y of the base model."""
        if self.dense is not None:
            return linear(x, self.dense, bias)
        slot = torch.full((len(x),), len(self.table) - 1, dtype=torch.int32, device=x.device)
        return self.factored(x, slot, bias)

    def factored(self, x: Tensor, slot: Tensor, bias: Tensor | None = None) -> Tensor:
        """y of tokens whose slots are rows of the table, the base's included."""
        return self._pass(LinearMode.FACTORED, x, slot, bias)

    def _pass(self, mode: LinearMode, x: Tensor, slot: Tensor, bias: Tensor | None) -> Tensor:
        if mode == LinearMode.FACTORED:
            outputs = [
                svf_linear(x, part.vt, part.u, scale, slot, None if bias is None else bias[start:stop])
                for part, scale, start, stop in self._spans(self.scales)
            ]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        assert self.dense is not None
        y = linear(x, self.dense, bias)
        if mode == LinearMode.DELTA:
            # Not svf_delta_linear: its slot 0 is the base's, here it is an adapter's.
            for part, delta, start, stop in self._spans(self._deltas):
                assert part.leading is not None
                y[:, start:stop] += svf_linear(x, *part.leading, delta, slot)
        return y

    def _spans(self, tables: Sequence[Tensor]) -> Iterator[tuple[Part, Tensor, int, int]]:
        """Each part with its table and its outputs."""
        return zip(self.parts, tables, self._outputs[:-1], self._outputs[1:], strict=True)


def ready(matrix: Tensor) -> Weight:
    """The matrix in kernel order; elsewhere than on a CPU that is the matrix itself."""
    return pack(matrix) if matrix.device.type == "cpu" else matrix.contiguous()
