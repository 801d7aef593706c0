"""The ops of a GPU's step, each by its Triton kernel or by its reference.

The references run on any device, so that everything around the kernels can be tested where there is no GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .add_components import add_components_ref, add_components_triton
from .decode_attention import decode_attention_ref, decode_attention_triton
from .grid_values import grid_values_ref, grid_values_triton
from .grouped_linear import (
    grouped_delta_linear_ref,
    grouped_delta_linear_triton,
    grouped_factored_linear_ref,
    grouped_factored_linear_triton,
    grouped_linear_ref,
    grouped_linear_triton,
)
from .linear import linear_ref, linear_triton
from .pool_states import pool_states_ref, pool_states_triton
from .prefill_attention import prefill_attention_ref, prefill_attention_triton
from .rms_norm import add_rms_norm_ref, add_rms_norm_triton
from .rope_store import rope_store_ref, rope_store_triton
from .sample import sample_ref, sample_triton
from .scale_by_slot import scale_by_slot_ref, scale_by_slot_triton
from .silu_mul import silu_mul_ref, silu_mul_triton


@dataclass(frozen=True, slots=True)
class DeviceOps:
    """The functions; their arguments stand at the references. None of them waits for the device."""

    linear: Callable[..., Tensor]
    grouped_linear: Callable[..., Tensor]
    grouped_delta_linear: Callable[..., Tensor]
    grouped_factored_linear: Callable[..., Tensor]
    grid_values: Callable[..., None]
    add_components: Callable[..., None]
    add_rms_norm: Callable[..., Tensor]
    silu_mul: Callable[..., Tensor]
    scale_by_slot: Callable[..., None]
    rope_store: Callable[..., None]
    decode_attention: Callable[..., Tensor]
    prefill_attention: Callable[..., Tensor]
    sample: Callable[..., tuple[Tensor, Tensor]]
    pool_states: Callable[..., None]


REFERENCE_OPS = DeviceOps(
    linear=linear_ref,
    grouped_linear=grouped_linear_ref,
    grouped_delta_linear=grouped_delta_linear_ref,
    grouped_factored_linear=grouped_factored_linear_ref,
    grid_values=grid_values_ref,
    add_components=add_components_ref,
    add_rms_norm=add_rms_norm_ref,
    silu_mul=silu_mul_ref,
    scale_by_slot=scale_by_slot_ref,
    rope_store=rope_store_ref,
    decode_attention=decode_attention_ref,
    prefill_attention=prefill_attention_ref,
    sample=sample_ref,
    pool_states=pool_states_ref,
)


def triton_ops() -> DeviceOps:
    """The ops by their kernels."""
    return DeviceOps(
        linear=linear_triton,
        grouped_linear=grouped_linear_triton,
        grouped_delta_linear=grouped_delta_linear_triton,
        grouped_factored_linear=grouped_factored_linear_triton,
        grid_values=grid_values_triton,
        add_components=add_components_triton,
        add_rms_norm=add_rms_norm_triton,
        silu_mul=silu_mul_triton,
        scale_by_slot=scale_by_slot_triton,
        rope_store=rope_store_triton,
        decode_attention=decode_attention_triton,
        prefill_attention=prefill_attention_triton,
        sample=sample_triton,
        pool_states=pool_states_triton,
    )
