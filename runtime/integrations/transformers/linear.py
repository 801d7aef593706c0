"""The module that stands in for a linear while experts are attached."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zweave.kernels import LinearMode, Packed, linear, pack, svf_delta_linear, svf_linear, unpack
from zweave.kernels.train.svf_linear_train import TrainingFactors, svf_linear_train

from ...errors import ZweaveError
from ..modes import pass_through
from .rows import Router, Rows


class AttachedLinear(nn.Module):
    """Semantics: y = W x + b for rows of the base, y = U (scale[slot] * (Vt x)) + b for rows under an expert, and
    y = W x + U_K (delta[slot] * (Vt_K x)) + b where the expert changes no more than K leading components.

    weight, bias: the replaced module's own parameters, under the names that they had.
    transposed: whether the weight is [in_features, out_features].
    scale, delta: [S, R] and [S, K] float32, the bank's rows for this matrix.
    index: of the matrix among the model's. router: says what the rows of a forward pass take.
    z: of each expert that learns, [R] float32: in bfloat16 a z near 1 would lose a tenth of z - 1.

    Gradients flow to the input and to z; the weight is frozen. Source: Transformer-Squared (arXiv 2501.06252).
    """

    sigma: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        name: str,
        replaced: nn.Module,
        transposed: bool,
        factors: tuple[Tensor, Tensor, Tensor],
        scale: Tensor,
        delta: Tensor,
        index: int,
        router: Router,
    ) -> None:
        super().__init__()
        self.name, self.index, self.router = name, index, router
        self.scale, self.delta = scale, delta
        self.transposed = transposed
        self.weight = replaced.get_parameter("weight")
        self.register_parameter("bias", getattr(replaced, "bias", None))
        self.train(replaced.training)
        matrix = self.matrix()
        self.out_features, self.in_features = matrix.shape
        u, sigma, vt = factors
        self.register_buffer("sigma", sigma.to(matrix.device).clone(), persistent=False)
        self.z = nn.ParameterDict()
        self._dense = _ready(matrix)
        self._vt, self._u = _ready(vt.to(matrix)), _ready(u.to(matrix))
        kept = delta.shape[1]
        self._leading = _ready(vt[:kept].to(matrix)), _ready(u[:, :kept].to(matrix))
        self._training: TrainingFactors | None = None

    def matrix(self) -> Tensor:
        """W [out_features, in_features], a view without gradient."""
        weight = self.weight.detach()
        return weight.T if self.transposed else weight

    def forward(self, x: Tensor) -> Tensor:
        rows = self.router.rows
        if rows is not None:
            rows.check(self.name, x)
        flat = x.reshape(-1, self.in_features)
        if flat.dtype != self.weight.dtype and torch.is_autocast_enabled(flat.device.type):
            flat = flat.to(self.weight.dtype)
        if (rows is not None and rows.learns) or (torch.is_grad_enabled() and flat.requires_grad):
            y = self._learn(flat, rows)
        else:
            y = self._serve(flat, rows)
        return y.view(*x.shape[:-1], self.out_features)

    def _serve(self, x: Tensor, rows: Rows | None) -> Tensor:
        if rows is None:
            return linear(x, self._dense, self.bias)
        return pass_through(rows.groups(self.index, len(x)), x, self.out_features, self._pass)

    def _pass(self, mode: LinearMode, x: Tensor, slot: Tensor) -> Tensor:
        if mode == LinearMode.DENSE:
            return linear(x, self._dense, self.bias)
        if mode == LinearMode.DELTA:
            return svf_delta_linear(x, self._dense, *self._leading, self.delta, slot, self.bias)
        return svf_linear(x, self._vt, self._u, self.scale, slot, self.bias)

    def _learn(self, x: Tensor, rows: Rows | None) -> Tensor:
        """The same by computed scales and with gradients; a batch with any expert takes the factors as a whole."""
        if rows is None or all(self._is_base(rows, row) for row in range(len(rows.slots))):
            weight = self.weight.T if self.transposed else self.weight
            return F.linear(x, weight, self.bias)
        scale = torch.stack([self._scale_of(rows, row) for row in range(len(rows.slots))])
        slot = rows.index(len(x))
        if not torch.is_grad_enabled():
            return svf_linear(x, self._vt, self._u, scale, slot, self.bias)
        return svf_linear_train(x, self._training_factors(), scale, slot, self.bias)

    def _is_base(self, rows: Rows, row: int) -> bool:
        learning = rows.learning[row]
        return learning not in self.z if learning is not None else rows.is_base(self.index, row)

    def _scale_of(self, rows: Rows, row: int) -> Tensor:
        learning = rows.learning[row]
        if learning is not None and learning in self.z:
            return self.sigma * self.z[learning]
        return self.scale[rows.slots[row]]

    def _training_factors(self) -> TrainingFactors:
        if self._training is None:
            vt, u = _plain(self._vt), _plain(self._u)
            packed_vt, packed_u = (p if isinstance(p, Packed) else pack(p) for p in (self._vt, self._u))
            self._training = TrainingFactors(
                packed_vt, packed_u, pack(u.T.contiguous()), pack(vt.T.contiguous())
            )
        return self._training

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AttachedLinear":
        """Refuses to move: packed weights stay where they are, and z in float32."""
        moved: Any = fn(self.weight.detach())
        if moved.dtype != self.weight.dtype or moved.device != self.weight.device:
            raise ZweaveError(
                f"the model cannot move to {moved.dtype} on {moved.device} while experts are attached: detach them"
            )
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={len(self.sigma)}"


def _ready(matrix: Tensor) -> Packed | Tensor:
    """The matrix in kernel order; elsewhere than on a CPU that is the matrix itself."""
    return pack(matrix) if matrix.device.type == "cpu" else matrix.contiguous()


def _plain(matrix: Packed | Tensor) -> Tensor:
    return unpack(matrix) if isinstance(matrix, Packed) else matrix
