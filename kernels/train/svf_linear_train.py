"""The SVF linear that learns: gradients of the activations and of the scales through the packed products.

    h = Vt x        y = [W | U] [x | d * h] + b            W only where the components are a few of a delta
    g_h = Ut g      dx = [Wt | V] [g | d * g_h]            dd[s] = sum over the tokens of slot s of h * g_h

x [T, N]   vt [R, N]   u [M, R]   scale d [S, R]   slot [T]   ->   y [T, M]

U, V and W are frozen, so there is no product over tokens: two factored passes a step, four products of
2 T R (M + N) / 2 FLOPs each, against three dense ones, a recomposition U diag(d) Vt and its gradient, two more
of 2 M N R. The transposes are packed too, which doubles the memory of the factors (158 million numbers of
SmolLM2-135M: 316 MB more in bf16). Kept for the backward pass: h, T R float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layout.packed import Packed, pack
from ..linear import linear


@dataclass(frozen=True, slots=True)
class TrainingFactors:
    """The matrices of both passes, packed.

    vt: [R, N].
    ut: [R, M].
    u: [M, R], or [M, N + R] with W in front of it.
    v: [N, R], or [N, M + R] with the transpose of W in front of it.
    """

    vt: Packed
    u: Packed
    ut: Packed
    v: Packed

    @classmethod
    def of(cls, vt: Tensor, u: Tensor, weight: Tensor | None = None) -> "TrainingFactors":
        """Packs vt [R, N] and u [M, R]; a weight [M, N] makes the scales those of a delta to it."""
        wide_u = u if weight is None else torch.cat([weight, u], 1)
        wide_v = vt.T if weight is None else torch.cat([weight.T, vt.T], 1)
        return cls(pack(vt), pack(wide_u), pack(u.T.contiguous()), pack(wide_v.contiguous()))

    @property
    def has_weight(self) -> bool:
        return self.u.shape[1] != self.vt.shape[0]


def svf_linear_train_ref(
    x: Tensor,
    vt: Tensor,
    u: Tensor,
    scale: Tensor,
    slot: Tensor,
    bias: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Semantics: y[t] = W x[t] + u (scale[slot[t]] * (vt x[t])) + bias by autograd, in the dtype of its arguments."""
    y = ((x @ vt.T) * scale[slot.long()]) @ u.T
    if weight is not None:
        y = y + x @ weight.T
    return y if bias is None else y + bias


def svf_linear_train(
    x: Tensor,
    factors: TrainingFactors,
    scale: Tensor,
    slot: Tensor | None = None,
    bias: Tensor | None = None,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """Semantics: y[t] = (W x[t] +) u (scale[slot[t]] * (vt x[t])) + bias, differentiable in x and scale.

    x: [tokens, in_features], bf16 or float32, as the factors.
    scale: [slots, rank], float32: sigma * z, or sigma * (z - 1) where the factors hold W.
    slot: [tokens], int32, 0 <= slot < slots; None where there is one slot, or lengths are given.
    bias: [out_features], x's dtype, or None; frozen.
    lengths: tokens of each slot, where those of one lie together and the slots in order. Gradients then have the bits
        that they have for the tokens of each slot alone.
    Returns [tokens, out_features] in x's dtype. Without W its bits are those of `svf_linear`. Sums are float32, the
    gradient of a scale too, over its tokens in order: the same input gives the same bits.
    Raises: ValueError or RuntimeError on a wrong shape or dtype, or if a frozen argument wants a gradient.
    Source: Transformer-Squared (arXiv 2501.06252), section 3.1.
    """
    rank, in_features = factors.vt.shape
    if (
        x.shape[-1] != in_features
        or scale.dim() != 2
        or scale.shape[1] != rank
        or scale.dtype != torch.float32
    ):
        raise ValueError(
            f"svf_linear_train: x {list(x.shape)} and scale {scale.dtype} {list(scale.shape)} do not fit "
            f"vt {list(factors.vt.shape)}: want [T, N] and float32 [S, R]"
        )
    if lengths is not None and (
        slot is not None or len(lengths) != scale.shape[0] or sum(lengths) != x.shape[0]
    ):
        raise ValueError(
            f"svf_linear_train: lengths {list(lengths)} do not divide {x.shape[0]} tokens among {scale.shape[0]} slots"
        )
    if slot is None and lengths is None and scale.shape[0] != 1:
        raise ValueError(f"svf_linear_train: {scale.shape[0]} slots and no slot of each token")
    if slot is not None and slot.shape != x.shape[:1]:
        raise ValueError(
            f"svf_linear_train: slot {list(slot.shape)} is not one for each of {x.shape[0]} tokens"
        )
    if bias is not None and bias.requires_grad:
        raise ValueError("svf_linear_train: the bias is frozen, call requires_grad_(False) on it")
    return _SvfLinear.apply(x, factors, scale, slot, bias, lengths)


def _widened(x: Tensor, scaled: Tensor, factors: TrainingFactors) -> Tensor:
    return torch.cat([x, scaled], 1) if factors.has_weight else scaled


def _scaled(
    hidden: Tensor, scale: Tensor, slot: Tensor | None, lengths: Sequence[int] | None, dtype: torch.dtype
) -> Tensor:
    """hidden times each token's row of scale, multiplied in float32 and rounded once."""
    out = torch.empty(hidden.shape, dtype=dtype, device=hidden.device)
    if lengths is None:
        return torch.mul(hidden, scale if slot is None else scale[slot.long()], out=out)
    for part, row, target in zip(hidden.split(lengths), scale, out.split(lengths), strict=True):
        torch.mul(part, row, out=target)
    return out


def _summed(terms: Tensor, slots: int, slot: Tensor | None, lengths: Sequence[int] | None) -> Tensor:
    """[slots, R]: the sum of the terms [T, R] over the tokens of each slot."""
    if lengths is not None:
        return torch.stack([part.sum(0) for part in terms.split(lengths)])
    if slot is None:
        return terms.sum(0, keepdim=True)
    return terms.new_zeros(slots, terms.shape[1]).index_add_(0, slot.long(), terms)


class _SvfLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        factors: TrainingFactors,
        scale: Tensor,
        slot: Tensor | None,
        bias: Tensor | None,
        lengths: Sequence[int] | None,
    ) -> Tensor:
        hidden = linear(x, factors.vt, out_dtype=torch.float32)
        ctx.factors, ctx.lengths = factors, lengths
        ctx.save_for_backward(hidden if scale.requires_grad else None, scale, slot)
        scaled = _scaled(hidden, scale, slot, lengths, x.dtype)
        return linear(_widened(x, scaled, factors), factors.u, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, scale, slot = ctx.saved_tensors
        factors: TrainingFactors = ctx.factors
        grad = grads[0].contiguous()
        grad_hidden = linear(grad, factors.ut, out_dtype=torch.float32)
        grad_x = grad_scale = None
        if ctx.needs_input_grad[0]:
            scaled = _scaled(grad_hidden, scale, slot, ctx.lengths, grad.dtype)
            grad_x = linear(_widened(grad, scaled, factors), factors.v)
        if ctx.needs_input_grad[2]:
            grad_scale = _summed(grad_hidden.mul_(hidden), len(scale), slot, ctx.lengths)
        return grad_x, None, grad_scale, None, None, None
