"""One linear of a served model: the dense weight, the factors, and a table of scales with a row an adapter."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zweave.integrations.vllm.tokens import Tokens
from zweave.kernels import linear, pack, svf_linear
from zweave.kernels.packed import Weight


@dataclass(frozen=True, slots=True)
class Part:
    """A matrix of a fused linear: u [M, R] and vt [R, N] of this worker, and sigma [R] float32."""

    u: Weight
    vt: Weight
    sigma: Tensor

    @classmethod
    def of(cls, u: Tensor, sigma: Tensor, vt: Tensor, like: Tensor) -> "Part":
        """Factors in the dtype and on the device of `like`, in the order in which the kernels read them."""
        return cls(ready(u.to(like)), ready(vt.to(like)), sigma.to(like.device, torch.float32).clone())


class ServedLinear:
    """Semantics: y = W x + b for the base's tokens, y = U (scale[slot] * (Vt x)) + b for an expert's.

    dense: W [sum of M, N]; None: the base takes the factors too, as the last row of the table.
    parts: the matrices that lie in it one below the other.
    rows: adapters that the table holds; one more row is the base's.

    table: [rows + 1, sum of R] float32, sigma * z. The last row, sigma, is what index -1 means.
    """

    def __init__(self, dense: Weight | None, parts: Sequence[Part], rows: int) -> None:
        self.dense, self.parts = dense, tuple(parts)
        sigma = torch.cat([part.sigma for part in parts])
        self.table = sigma.repeat(rows + 1, 1)
        ranks = [len(part.sigma) for part in parts]
        self.scales = self.table.split(ranks, dim=1)
        self._base = self.table[rows].split(ranks)
        self._outputs = np.cumsum([0, *(part.u.shape[0] for part in parts)]).tolist()

    def write(self, row: int, z: Sequence[Tensor | None]) -> None:
        """Gives an adapter its row: one z [R] a part, None where it adapts nothing."""
        for scale, base, values in zip(self.scales, self._base, z, strict=True):
            if values is None:
                scale[row].copy_(base)
            else:
                # As the engine has it: the product in float64, then rounded once.
                scale[row].copy_((base.double() * values.to(base.device).double()).float())

    def __call__(self, x: Tensor, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        """y [T, sum of M] of x [T, N]; each token goes the way that its own slot says."""
        if tokens.slot is None:
            return self.base(x, bias)
        if tokens.dense is None or tokens.factored is None:
            return self.factored(x, tokens.slot, bias)
        y = x.new_empty(len(x), self._outputs[-1])
        y.index_copy_(0, tokens.dense, self.base(x[tokens.dense], bias))
        return y.index_copy_(0, tokens.factored, self.factored(x[tokens.factored], tokens.slot, bias))

    def base(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y of the base model."""
        if self.dense is not None:
            return linear(x, self.dense, bias)
        slot = torch.full((len(x),), len(self.table) - 1, dtype=torch.int32, device=x.device)
        return self.factored(x, slot, bias)

    def factored(self, x: Tensor, slot: Tensor, bias: Tensor | None = None) -> Tensor:
        """y of tokens whose slots are rows of the table, the base's included."""
        outputs = [
            svf_linear(x, part.vt, part.u, scale, slot, None if bias is None else bias[start:stop])
            for part, scale, start, stop in zip(
                self.parts, self.scales, self._outputs[:-1], self._outputs[1:], strict=True
            )
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def ready(matrix: Tensor) -> Weight:
    """The matrix in kernel order; elsewhere than on a CPU that is the matrix itself."""
    return pack(matrix) if matrix.device.type == "cpu" else matrix.contiguous()
