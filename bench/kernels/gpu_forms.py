"""The forms of an adapted linear that are compared on a GPU; see `linear_forms` for what a form is."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zweave.kernels.cuda_decode import is_built, linear_decode, svf_delta_linear_decode, svf_linear_decode

from ..harness.harness import Provider
from .grouped_lora import Groups, grouped_lora
from .linear_case import Operands
from .linear_forms import ProviderAt, delta, delta_form, dense, dense_form, f_linear, factored, make_provider


def compiled(o: Operands) -> ProviderAt:
    """torch.compile of the formula as one writes it down."""
    function = torch.compile(svf_linear_naive, dynamic=False)
    weights = o.rotated(lambda: (o.vt.clone(), o.u.clone()), o.vt.nbytes + o.u.nbytes)
    return _factored(o, "torch.compile", weights, function)


def svf_linear_naive(x: Tensor, vt: Tensor, u: Tensor, scale: Tensor, slot: Tensor) -> Tensor:
    """U (scale[slot] * (V^T x)) in the dtype of x, which is what makes it a fair baseline."""
    return ((x @ vt.T) * scale[slot.long()]).to(x.dtype) @ u.T


def quantised(format: str) -> Callable[[Operands], ProviderAt]:
    """The factored linear on factors of one byte a weight."""

    def form(o: Operands) -> ProviderAt:
        from zweave.kernels.layout.quantize import dequantize, quantize
        from zweave.kernels.svf_linear import svf_linear_triton

        vt, u = quantize(o.vt, format), quantize(o.u, format)  # type: ignore[arg-type]
        plain = (dequantize(vt).double(), dequantize(u).double())

        def truth(T: int, E: int) -> Tensor:
            rows = o.scale[o.slot(T, E).long()].double()
            return ((o.x[:T].double() @ plain[0].T) * rows) @ plain[1].T

        def copy() -> tuple[Any, Any]:
            return quantize(o.vt, format), quantize(o.u, format)  # type: ignore[arg-type]

        weights = o.rotated(copy, (o.vt.nbytes + o.u.nbytes) // 2)
        return _factored(o, f"factored {format}", weights, svf_linear_triton, truth, weight_bytes=1)

    return form


def _factored(
    o: Operands,
    name: str,
    weights: list[Any],
    function: Callable[..., Tensor],
    truth: Callable[[int, int], Tensor] | None = None,
    weight_bytes: int | None = None,
) -> ProviderAt:
    M, N, R = o.shape.M, o.shape.N, o.shape.rank
    narrower = 0 if weight_bytes is None else o.x.element_size() - weight_bytes

    def at(T: int, E: int) -> Provider:
        x, slot = o.x[:T], o.slot(T, E)
        bound = R * (M + N) / (M * N) * (1 if weight_bytes is None else weight_bytes / o.x.element_size())
        return make_provider(
            o, name, weights, lambda w: function(x, *w, o.scale, slot),
            lambda: truth(T, E) if truth else o.factored_truth(E)[:T], elements=R * (M + N),
            activations=M + N + 2 * R, extra_bytes=4 * E * R - narrower * R * (M + N), T=T, E=E, bound=bound,
        )  # fmt: skip

    return at


def _require_build() -> None:
    if not is_built():
        raise ImportError("built without CUDA")


def dense_decode(o: Operands) -> ProviderAt:
    """The plain linear of csrc/cuda."""
    _require_build()
    return dense_form(o, "dense decode", o.rotated(o.w.clone, o.w.nbytes), linear_decode)


def factored_decode(o: Operands) -> ProviderAt:
    """The factored linear of csrc/cuda."""
    _require_build()
    weights = o.rotated(lambda: (o.vt.clone(), o.u.clone()), o.vt.nbytes + o.u.nbytes)
    return _factored(o, "factored decode", weights, svf_linear_decode)


def delta_decode(o: Operands) -> ProviderAt:
    """The delta linear of csrc/cuda, over the leading R/8 components."""
    _require_build()
    return delta_form(o, "delta decode", Tensor.clone, svf_delta_linear_decode)


def triton_lora(rank: int) -> Callable[[Operands], ProviderAt]:
    """cuBLAS for W x, and a grouped LoRA in Triton on top."""

    def form(o: Operands) -> ProviderAt:
        M, N = o.shape.M, o.shape.N
        generator = torch.Generator(o.device).manual_seed(1)

        def normal(*size: int) -> Tensor:
            values = torch.randn(size, generator=generator, device=o.device) * size[-1] ** -0.5
            return values.to(o.dtype)

        a, b = normal(o.experts, rank, N), normal(o.experts, M, rank)
        weights = o.rotated(lambda: (o.w.clone(), a.clone(), b.clone()), o.w.nbytes + a.nbytes + b.nbytes)

        def truth(T: int, E: int) -> Tensor:
            y, slot = o.dense_truth[:T].clone(), o.slot(T, E)
            for expert in range(E):
                rows = (slot == expert).nonzero().flatten()
                y[rows] += o.product(b[expert], o.product(a[expert], o.x[rows]))
            return y

        def at(T: int, E: int) -> Provider:
            x, groups = o.x[:T], Groups.of(o.slot(T, E))
            return make_provider(
                o, f"Triton LoRA rank {rank}", weights,
                lambda w: grouped_lora(F.linear(x, w[0]), x, w[1], w[2], groups), lambda: truth(T, E),
                elements=M * N + rank * (M + N), activations=M + N + 2 * rank,
                extra_bytes=(E - 1) * rank * (M + N) * x.element_size(), T=T, E=E,
            )  # fmt: skip

        return at

    return form


GPU_ONCE: dict[str, Callable[[Operands], ProviderAt]] = {
    "F.linear": f_linear,
    "dense": dense,
    "dense decode": dense_decode,
}
GPU_PER_EXPERTS: dict[str, Callable[[Operands], ProviderAt]] = {
    "factored": factored,
    "factored decode": factored_decode,
    "delta decode": delta_decode,
    "factored fp8": quantised("fp8"),
    "factored int8": quantised("int8"),
    "delta": delta,
    "torch.compile": compiled,
    "Triton LoRA rank 16": triton_lora(16),
    "Triton LoRA rank 64": triton_lora(64),
}
GPU_FORMS = GPU_ONCE | GPU_PER_EXPERTS
