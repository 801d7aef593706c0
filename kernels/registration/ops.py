"""What the ops of csrc/bindings.cpp need beside their C++: fakes, gradients and CUDA implementations.

On CUDA `linear`, `svf_linear`, `svf_delta_linear` and `mix` launch Triton; the other ops run their PyTorch references
there, by explicit registration. Any other device is an error of the dispatcher that names the op and the device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import zweave.kernels._C  # noqa: F401  defines the ops

from ..attention import paged_attention_ref, write_kv_ref
from ..greedy import greedy_ref
from ..layout.packed import FORMATS, panel_shape
from ..layout.quantize import Quantized
from ..mix import mix_triton
from ..rms_norm import add_rms_norm_ref, rms_norm_ref
from ..rope import rope_ref
from ..silu_mul import silu_mul_ref
from ..svf_delta_linear import svf_delta_linear_triton
from ..svf_linear import DTYPES, svf_linear_triton
from ..triton.checks import Factor
from ..triton.gemm import linear_triton


@torch.library.register_fake("zweave::pack")
def _pack_fake(weight: Tensor) -> Tensor:
    if weight.is_cuda:
        return weight.new_empty(weight.shape)
    rows, columns = weight.shape
    return weight.new_empty(panel_shape(rows, columns, weight.dtype))


@torch.library.register_fake("zweave::unpack")
def _unpack_fake(packed: Tensor, out_features: int, in_features: int) -> Tensor:
    return packed.new_empty(out_features, in_features)


@torch.library.register_fake("zweave::linear")
def _linear_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int, out_dtype: torch.dtype | None = None
) -> Tensor:
    return x.new_empty(x.shape[0], out_features, dtype=out_dtype or x.dtype)


@torch.library.register_fake("zweave::svf_linear")
def _svf_linear_fake(
    x: Tensor, vt: Tensor, u: Tensor, scale: Tensor, slot: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


@torch.library.register_fake("zweave::svf_delta_linear")
def _svf_delta_linear_fake(
    x: Tensor,
    w: Tensor,
    vt: Tensor,
    u: Tensor,
    delta: Tensor,
    slot: Tensor,
    bias: Tensor | None,
    out_features: int,
    vt_scale: Tensor | None = None,
    u_scale: Tensor | None = None,
    vt_group: int = 0,
    u_group: int = 0,
) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


@torch.library.register_fake("zweave::mix")
def _mix_fake(table: Tensor, alpha: Tensor) -> Tensor:
    return table.new_empty(alpha.shape[0], table.shape[1])


@torch.library.register_fake("zweave::greedy")
def _greedy_fake(logits: Tensor) -> tuple[Tensor, Tensor]:
    rows = logits.shape[:1]
    return logits.new_empty(rows, dtype=torch.int64), logits.new_empty(rows, dtype=torch.bool)


@torch.library.register_fake("zweave::rms_norm")
def _rms_norm_fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("zweave::add_rms_norm")
def _add_rms_norm_fake(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("zweave::silu_mul")
def _silu_mul_fake(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.register_fake("zweave::paged_attention")
def _paged_attention_fake(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    sequence: Tensor,
    position: Tensor,
    scale: float,
    window: int,
) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.register_fake("zweave::rope")
def _rope_fake(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position: Tensor) -> None:
    return None


@torch.library.register_fake("zweave::write_kv")
def _write_kv_fake(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, index: Tensor) -> None:
    return None


def _svf_linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, vt, u, scale, slot, _, _ = inputs
    if vt.dim() != 2 or u.dim() != 2:
        raise RuntimeError("svf_linear: gradients need plain vt and u, not packed ones")
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        raise RuntimeError("svf_linear: vt and u are frozen, call requires_grad_(False) on them")
    ctx.save_for_backward(x, vt, u, scale, slot)


def _svf_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, scale and bias; the first product is made again rather than kept."""
    x, vt, u, scale, slot = ctx.saved_tensors
    grad_x = grad_scale = grad_bias = None
    rows = slot.long()
    through = grad @ u  # [T, R]
    if ctx.needs_input_grad[0]:
        grad_x = (through * scale[rows]).to(x.dtype) @ vt
    if ctx.needs_input_grad[3]:
        terms = through.float() * (x @ vt.T).float()
        grad_scale = torch.zeros_like(scale).index_add(0, rows, terms)
    if ctx.needs_input_grad[5]:
        grad_bias = grad.sum(0)
    return grad_x, None, None, grad_scale, None, grad_bias, None


def _mix_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _mix_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    table, alpha = ctx.saved_tensors
    return (
        alpha.T @ grad if ctx.needs_input_grad[0] else None,
        grad @ table.T if ctx.needs_input_grad[1] else None,
    )


# Autograd keys are off in inference mode: a decode step goes straight from the dispatcher to the C++ kernel.
torch.library.register_autograd("zweave::svf_linear", _svf_linear_backward, setup_context=_svf_linear_setup)
torch.library.register_autograd("zweave::mix", _mix_backward, setup_context=_mix_setup)


def _pack_cuda(weight: Tensor) -> Tensor:
    return weight.clone(memory_format=torch.contiguous_format)


def _unpack_cuda(packed: Tensor, out_features: int, in_features: int) -> Tensor:
    _check_plain("unpack", packed)
    return packed.clone()


def _linear_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int, out_dtype: torch.dtype | None = None
) -> Tensor:
    _check_plain("linear", weight)
    return linear_triton(x, weight, bias, out_dtype=out_dtype)


def _svf_linear_cuda(
    x: Tensor, vt: Tensor, u: Tensor, scale: Tensor, slot: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    _check_plain("svf_linear", vt)
    _check_plain("svf_linear", u)
    return svf_linear_triton(x, vt, u, scale, slot, bias)


def _svf_delta_linear_cuda(
    x: Tensor,
    w: Tensor,
    vt: Tensor,
    u: Tensor,
    delta: Tensor,
    slot: Tensor,
    bias: Tensor | None,
    out_features: int,
    vt_scale: Tensor | None = None,
    u_scale: Tensor | None = None,
    vt_group: int = 0,
    u_group: int = 0,
) -> Tensor:
    def factor(data: Tensor, scale: Tensor | None, group: int, shape: tuple[int, int]) -> Factor:
        _check_plain("svf_delta_linear", data)
        if scale is None:
            return data
        return Quantized(data, scale, shape, FORMATS[data.dtype], group or max(shape[1], 1))

    _check_plain("svf_delta_linear", w)
    kept = delta.shape[1]
    return svf_delta_linear_triton(
        x,
        w,
        factor(vt, vt_scale, vt_group, (kept, x.shape[1])),
        factor(u, u_scale, u_group, (out_features, kept)),
        delta,
        slot,
        bias,
    )


def _check_plain(op: str, weight: Tensor) -> None:
    if weight.dim() != 2:
        raise ValueError(f"{op}: weight on {weight.device} was packed for a CPU: move it, then pack it")


def _with_dtype_check(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, refusing what the CPU refuses: anything but bfloat16, float32 and, to pack, quantised values."""
    dtypes = (*DTYPES, *FORMATS) if op in ("pack", "unpack") else DTYPES

    def checked(first: Tensor, *rest: Any) -> Any:
        if first.dtype not in dtypes:
            arch = "sm_{}{}".format(*torch.cuda.get_device_capability(first.device))
            raise NotImplementedError(
                f"{op}: no kernel for {first.dtype} on {first.device} ({arch}), only bfloat16 and float32"
            )
        return function(first, *rest)

    return checked


_CUDA: dict[str, Callable[..., Any]] = {
    "pack": _pack_cuda,
    "unpack": _unpack_cuda,
    "linear": _linear_cuda,
    "svf_linear": _svf_linear_cuda,
    "svf_delta_linear": _svf_delta_linear_cuda,
    "mix": mix_triton,
    "greedy": greedy_ref,
    "rms_norm": rms_norm_ref,
    "add_rms_norm": add_rms_norm_ref,
    "rope": rope_ref,
    "silu_mul": silu_mul_ref,
    "write_kv": write_kv_ref,
    "paged_attention": paged_attention_ref,
}
# An implementation lasts as long as the library object that it was registered through.
_LIBRARY = torch.library.Library("zweave", "IMPL", "CUDA")
for _op, _function in _CUDA.items():
    _LIBRARY.impl(_op, _with_dtype_check(_op, _function))
