"""CUDA implementations of the ops.

The linears, `mix`, `silu_mul`, `paged_attention` and the norms launch Triton; the other ops run their references there,
by explicit registration. Any other device is an error of the dispatcher that names the op and the device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import zweave.kernels._C  # noqa: F401  defines the ops

from ..attention import write_kv_ref
from ..decode_attention import decode_attention_triton
from ..greedy import greedy_ref
from ..layout.packed import FORMATS
from ..layout.quantize import Quantized
from ..linear import linear_triton
from ..mix import mix_triton
from ..rms_norm import add_rms_norm_triton, rms_norm_triton
from ..rope import rope_ref
from ..silu_mul import silu_mul_triton
from ..svf_delta_linear import svf_delta_linear_triton
from ..svf_linear import DTYPES, svf_linear_triton
from ..triton.checks import Factor


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
    """The arguments are those of the schema, in its order."""
    _check_plain("svf_delta_linear", w)
    kept = delta.shape[1]
    vt_factor = _factor(vt, vt_scale, vt_group, (kept, x.shape[1]))
    u_factor = _factor(u, u_scale, u_group, (out_features, kept))
    return svf_delta_linear_triton(x, w, vt_factor, u_factor, delta, slot, bias)


def _factor(data: Tensor, scale: Tensor | None, group: int, shape: tuple[int, int]) -> Factor:
    """The factor of a delta that the op was given in pieces; group 0: one scale a row."""
    _check_plain("svf_delta_linear", data)
    if scale is None:
        return data
    return Quantized(data, scale, shape, FORMATS[data.dtype], group or max(shape[1], 1))


def _paged_attention_cuda(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    sequence: Tensor,
    position: Tensor,
    scale: float,
    window: int = 0,
) -> Tensor:
    """Each token is a row of its own, of decoding and of prompts alike."""
    return decode_attention_triton(q, k_cache, v_cache, block_table, position, scale, window, sequence)


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
    "rms_norm": rms_norm_triton,
    "add_rms_norm": add_rms_norm_triton,
    "rope": rope_ref,
    "silu_mul": silu_mul_triton,
    "write_kv": write_kv_ref,
    "paged_attention": _paged_attention_cuda,
}
# An implementation lasts as long as the library object that it was registered through.
_LIBRARY = torch.library.Library("zweave", "IMPL", "CUDA")
for _op, _function in _CUDA.items():
    _LIBRARY.impl(_op, _with_dtype_check(_op, _function))
