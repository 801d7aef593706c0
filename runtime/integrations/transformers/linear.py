"""The module that stands in for a linear while experts are attached."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zweave.kernels import AdaptedLinear, pack, svf_linear, unpack
from zweave.kernels.layout.packed import pack_or_view
from zweave.kernels.train.svf_linear_train import TrainingFactors, svf_linear_train

from ...errors import ZweaveError
from ...experts.slot_tables import SlotTables
from .router import Router
from .rows import Rows

# Where torch keeps a module's hooks.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


@dataclass(frozen=True, slots=True)
class Target:
    """A linear to adapt.

    name: its name in expert files.
    paths: where the module stands in the model, more than one if it is shared.
    module: the linear itself.
    transposed: whether its weight is [in_features, out_features], like that of GPT-2's Conv1D.
    """

    name: str
    paths: tuple[str, ...]
    module: nn.Module
    transposed: bool

    @property
    def weight(self) -> Tensor:
        """W [out_features, in_features], a view without gradient."""
        weight = self.module.get_parameter("weight").detach()
        return weight.T if self.transposed else weight

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]


def share_hooks(source: nn.Module, module: nn.Module) -> None:
    """Has the hooks of one module run in another, too: the handle of a hook removes it in both."""
    for name in _HOOKS:
        setattr(module, name, getattr(source, name))


class AttachedLinear(nn.Module):
    """An `AdaptedLinear` in the place of a model's own linear, with a training path.

    Serving, each row of a batch is computed in the mode of its slot. Where an expert learns or the input wants a
    gradient, a batch with any expert is computed by the factors: y = U (scale[row] * (Vt x)) + b.

    target: the linear that is replaced; its weight and bias stay parameters under their names.
    factors: u [M, R], sigma [R] and vt [R, N] of its matrix.
    tables: the bank's tables, which hold its rows.
    index: of the matrix among the model's.
    router: tells which rows of the tables a forward pass uses.
    z: of each expert that learns, [R] float32: in bfloat16 a z near 1 would lose a tenth of z - 1.

    Gradients flow to the input and to z; the weight is frozen. Source: Transformer-Squared (arXiv 2501.06252).
    """

    sigma: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        target: Target,
        factors: tuple[Tensor, Tensor, Tensor],
        tables: SlotTables,
        index: int,
        router: Router,
    ) -> None:
        super().__init__()
        self.name, self.index, self.router = target.name, index, router
        self.transposed = target.transposed
        self.weight = target.module.get_parameter("weight")
        self.register_parameter("bias", getattr(target.module, "bias", None))
        self.train(target.module.training)
        share_hooks(target.module, self)
        u, sigma, vt = factors
        self.out_features, self.in_features = target.shape
        self.register_buffer("sigma", sigma.to(self.weight.device).clone(), persistent=False)
        self.z = nn.ParameterDict()
        self._vt, self._u = (pack_or_view(factor.to(self.weight)) for factor in (vt, u))
        self._served = self._adapted(target, vt, u, tables)
        self._training: TrainingFactors | None = None

    def _adapted(self, target: Target, vt: Tensor, u: Tensor, tables: SlotTables) -> AdaptedLinear:
        delta = tables.delta_columns(target.name)
        kept = delta.shape[1]
        return AdaptedLinear(
            shape=target.shape,
            dense=pack_or_view(target.weight),
            vt=self._vt,
            u=self._u,
            scale=tables.columns(target.name),
            delta=delta,
            bias=self.bias,
            modes=tables.modes_of(target.name),
            delta_factors=(
                pack_or_view(vt[:kept].to(self.weight)),
                pack_or_view(u[:, :kept].to(self.weight)),
            ),
        )

    # Its rows are not in its arguments: a compiled graph would keep those that it was traced under.
    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        rows = self.router.current()
        if rows is not None:
            rows.check_input(self.name, x, exact=self.router.prompts is None)
        flat = x.reshape(-1, self.in_features)
        if flat.dtype != self.weight.dtype and torch.is_autocast_enabled(flat.device.type):
            flat = flat.to(self.weight.dtype)
        if (rows is not None and rows.learns) or (torch.is_grad_enabled() and flat.requires_grad):
            y = self._learn(flat, rows)
            self.router.note(y, rows)
        elif rows is None:
            y = self._served.base(flat)
        else:
            y = self._served.compute_groups(rows.groups(self.index, len(flat)), flat)
        return y.view(*x.shape[:-1], self.out_features)

    def _learn(self, x: Tensor, rows: Rows | None) -> Tensor:
        """y with gradients, by the factors unless all rows are base rows."""
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
        assert self._served.scale is not None
        return self._served.scale[rows.slots[row]]

    def _training_factors(self) -> TrainingFactors:
        if self._training is None:
            vt, u = unpack(self._vt), unpack(self._u)
            self._training = TrainingFactors(
                self._vt, self._u, pack(u.T.contiguous()), pack(vt.T.contiguous())
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
