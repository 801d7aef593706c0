"""The forms of an adapted linear that the linear bench compares.

A form is a function of the operands: it prepares copies of its weights once and returns a function that makes the
provider for T tokens under E experts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from zweave.kernels import linear, pack, svf_delta_linear, svf_linear

from ..harness.harness import ERROR_LIMITS, Provider, row_error
from .linear_case import LORA_RANK, Operands

ProviderAt: TypeAlias = Callable[[int, int], Provider]
# Work of one recomposition that is timed; larger matrices are timed in part.
RECOMPOSED_FLOPS = 1e10


def make_provider(
    o: Operands,
    name: str,
    weights: Sequence[Any],
    call: Callable[[Any], Tensor],
    truth: Callable[[], Tensor],
    *,
    elements: float,
    activations: float,
    extra_bytes: float = 0.0,
    extra_flops: float = 0.0,
    share: float = 1.0,
    **labels: object,
) -> Provider:
    """The provider of a form.

    elements: weights that each token is multiplied by, read once.
    activations: numbers read and written for each token.
    """
    tokens = labels["T"]
    assert isinstance(tokens, int)
    return Provider(
        name,
        [partial(call, weight) for weight in weights],
        error=lambda: row_error(call(weights[0]), truth()),
        limit=ERROR_LIMITS[o.dtype],
        share=share,
        labels=labels,
        moved=(elements + tokens * activations) * o.x.element_size() + extra_bytes,
        flops=2.0 * tokens * elements + extra_flops,
    )


def dense(o: Operands) -> ProviderAt:
    """Our own dense linear on packed weights."""
    return dense_form(o, "dense", o.rotated(lambda: pack(o.w), o.w.nbytes), linear)


def f_linear(o: Operands) -> ProviderAt:
    """PyTorch's dense linear."""
    return dense_form(o, "F.linear", o.rotated(o.w.clone, o.w.nbytes), F.linear)


def dense_form(
    o: Operands, name: str, weights: Sequence[Any], function: Callable[[Tensor, Any], Tensor]
) -> ProviderAt:
    M, N = o.shape.M, o.shape.N

    def at(T: int, E: int) -> Provider:
        x = o.x[:T]
        return make_provider(
            o, name, weights, lambda w: function(x, w), lambda: o.dense_truth[:T],
            elements=M * N, activations=M + N, T=T, E=None, bound=1.0,
        )  # fmt: skip

    return at


def factored(o: Operands) -> ProviderAt:
    """U (scale * (V^T x)), a row of scales for each expert."""
    weights = o.rotated(lambda: (pack(o.vt), pack(o.u)), o.vt.nbytes + o.u.nbytes)
    M, N, R = o.shape.M, o.shape.N, o.shape.rank

    def at(T: int, E: int) -> Provider:
        x, slot = o.x[:T], o.slot(T, E)
        return make_provider(
            o, "factored", weights, lambda w: svf_linear(x, w[0], w[1], o.scale, slot),
            lambda: o.factored_truth(E)[:T], elements=R * (M + N), activations=M + N + 2 * R,
            extra_bytes=4 * E * R, T=T, E=E, bound=R * (M + N) / (M * N),
        )  # fmt: skip

    return at


def delta(o: Operands) -> ProviderAt:
    """W x + U (delta * (V^T x)) over the leading R/8 components."""
    return delta_form(o, "delta", pack, svf_delta_linear)


def delta_form(
    o: Operands, name: str, copied: Callable[[Tensor], Any], function: Callable[..., Tensor]
) -> ProviderAt:
    """copied: copies a matrix into the layout that the function takes."""
    M, N, K = o.shape.M, o.shape.N, o.kept
    vt, u = o.vt[:K].contiguous(), o.u[:, :K].contiguous()
    size = o.w.nbytes + vt.nbytes + u.nbytes
    weights = o.rotated(lambda: (copied(o.w), copied(vt), copied(u)), size)

    def at(T: int, E: int) -> Provider:
        x, slot = o.x[:T], o.slot(T, E, first=1)
        return make_provider(
            o, name, weights, lambda w: function(x, w[0], w[1], w[2], o.delta, slot),
            lambda: o.delta_truth(E)[:T], elements=M * N + K * (M + N), activations=M + N + 2 * K,
            extra_bytes=4 * E * K, T=T, E=E, K=K, bound=1 + K * (M + N) / (M * N),
        )  # fmt: skip

    return at


def merged(o: Operands) -> ProviderAt:
    """W' of one expert as a dense weight."""
    w = (o.u * o.scale[0].to(o.dtype)) @ o.vt
    weights = o.rotated(lambda: pack(w), w.nbytes)
    M, N = o.shape.M, o.shape.N

    def at(T: int, E: int) -> Provider:
        x = o.x[:T]
        return make_provider(
            o, "merged", weights, lambda w: linear(x, w), lambda: o.factored_truth(1)[:T],
            elements=M * N, activations=M + N, T=T, E=1, bound=1.0,
        )  # fmt: skip

    return at


def recompose(o: Operands) -> ProviderAt:
    """W' = (U * sigma z) V^T for an expert, its tokens through it, then the next expert.

    Large matrices are timed for the first rows of W' and the first expert alone: a share of the whole.
    """
    M, N, R = o.shape.M, o.shape.N, o.shape.rank
    rows = min(M, max(64, round(RECOMPOSED_FLOPS / (2 * N * R))))
    weights = o.rotated(lambda: (o.vt.clone(), o.u[:rows].clone()), o.vt.nbytes + o.u.nbytes * rows // M)

    def at(T: int, E: int) -> Provider:
        done = E if 2.0 * M * N * R * E <= RECOMPOSED_FLOPS else 1
        x = [o.x[:T][expert::E] for expert in range(done)]
        # The order in which the rows come out: expert by expert.
        order = torch.cat([torch.arange(T)[expert::E] for expert in range(done)])

        def call(weight: tuple[Tensor, Tensor]) -> Tensor:
            vt, u = weight
            scale = o.scale.to(o.dtype)
            return torch.cat([F.linear(x[e], (u * scale[e]) @ vt) for e in range(done)])

        return make_provider(
            o, "recompose", weights, call, lambda: o.factored_truth(E)[order, :rows],
            elements=M * N, activations=M + N, extra_bytes=(E * R * (M + N) - M * N) * o.x.element_size(),
            extra_flops=2.0 * M * N * R * E, share=rows / M * done / E, T=T, E=E,
        )  # fmt: skip

    return at


def lora_bmm(o: Operands) -> ProviderAt:
    """Batched LoRA of rank 16: every token gathers the A and B of its adapter."""
    M, N, r = o.shape.M, o.shape.N, LORA_RANK
    size = o.w.nbytes + o.lora_a.nbytes + o.lora_b.nbytes
    weights = o.rotated(lambda: (o.w.clone(), o.lora_a.clone(), o.lora_b.clone()), size)

    def at(T: int, E: int) -> Provider:
        x, slot = o.x[:T], o.slot(T, E).long()

        def call(weight: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            w, a, b = weight
            projected = torch.bmm(a[slot], x.unsqueeze(2))
            return F.linear(x, w) + torch.bmm(b[slot], projected).squeeze(2)

        return make_provider(
            o, "LoRA bmm", weights, call, lambda: o.lora_truth(E)[:T],
            elements=M * N + r * (M + N), activations=M + N + 2 * r,
            extra_bytes=(E - 1) * r * (M + N) * o.x.element_size(), T=T, E=E,
        )  # fmt: skip

    return at


# Their cost cannot depend on the number of experts: they are measured once.
ONCE: dict[str, Callable[[Operands], ProviderAt]] = {"F.linear": f_linear, "dense": dense, "merged": merged}
PER_EXPERTS: dict[str, Callable[[Operands], ProviderAt]] = {
    "factored": factored,
    "delta": delta,
    "LoRA bmm": lora_bmm,
    "recompose": recompose,
}
FORMS = ONCE | PER_EXPERTS
