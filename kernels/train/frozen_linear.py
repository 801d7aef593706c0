"""The frozen linear: the gradient of the activations alone, through packed products.

    y = W x + b        dx = Wt g

x [T, N]   weight [M, N]   bias [M]   ->   y [T, M]

torch's own product may round a row in another way when other rows stand beside it. Here a row's bits are its own, so
that trainings which share a batch do not change each other. W is packed twice, as its transpose too.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layout.packed import Packed, pack
from ..linear import linear


@dataclass(frozen=True, slots=True)
class FrozenWeight:
    """A weight matrix of both passes, packed.

    forward: W [M, N].
    backward: its transpose [N, M].
    """

    forward: Packed
    backward: Packed

    @classmethod
    def of(cls, weight: Tensor) -> "FrozenWeight":
        """Packs weight [M, N]."""
        return cls(pack(weight), pack(weight.T.contiguous()))


def frozen_linear_ref(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Semantics: y = W x + bias by autograd, in the dtype of its arguments."""
    y = x @ weight.T
    return y if bias is None else y + bias


def frozen_linear(x: Tensor, weight: FrozenWeight, bias: Tensor | None = None) -> Tensor:
    """Semantics: y = W x + bias, differentiable in x.

    x: [tokens, in_features], bf16 or float32, as the weight.
    bias: [out_features], x's dtype, or None; frozen.
    Returns [tokens, out_features] in x's dtype, the bits of `linear`.
    Raises: ValueError or RuntimeError on a wrong shape or dtype.
    """
    return _FrozenLinear.apply(x, weight, bias)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return linear(x, weight.forward, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return linear(grads[0].contiguous(), ctx.weight.backward), None, None
