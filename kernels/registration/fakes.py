"""Fakes: the shape and dtype of every op's result, for tracing without data."""

import torch
from torch import Tensor

import zweave.kernels._C  # noqa: F401  defines the ops

from ..layout.packed import panel_shape


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
