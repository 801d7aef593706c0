"""The ops of zweave: PyTorch references, C++ for the CPU, Triton for CUDA."""

# Whoever has the root of a checkout on the path finds this folder as `kernels`, too, and transformers looks.
__package__ = "zweave.kernels"

import warnings

import torch  # noqa: F401  the extension wants its libraries loaded

from . import registration  # noqa: F401  of the ops
from ._C import cpu_isa, empty_in_huge_pages
from .adapted_linear import AdaptedLinear, LinearMode
from .attention import paged_attention, paged_attention_ref, write_kv, write_kv_ref
from .component_memory import ComponentMemory, pack_components
from .component_pages import PAGE, ComponentPages, component_pages_ref
from .components import gather_components
from .decoder import Decoder, DecoderConfig, DecoderLayer, DecoderMetadata, decoder_ref
from .device_ops import REFERENCE_OPS, DeviceOps, triton_ops
from .greedy import greedy, greedy_ref
from .joined_linear import JoinedLinear
from .layout.grid import GRID_FORMS, GROUP, SYMMETRIC, Grid, GridKind, grid_of, grid_rows, pack_grid
from .layout.grid_panels import GridPanels
from .layout.kv_layout import empty_kv
from .layout.packed import Packed, pack, unpack, unpack_quantized
from .layout.quantize import Quantized, dequantize, quantize
from .library_products import together
from .linear import linear, linear_ref
from .mix import mix, mix_ref
from .rms_norm import add_rms_norm, add_rms_norm_ref, rms_norm, rms_norm_ref
from .rope import rope, rope_ref
from .silu_mul import silu_mul, silu_mul_ref
from .stacked_linear import LIBRARY_FROM, StackedLinear
from .svf_delta_linear import svf_delta_linear, svf_delta_linear_ref
from .svf_linear import svf_linear, svf_linear_ref
from .weight_stack import DeltaFactors, GridStack, Stack

__all__ = [
    "GRID_FORMS",
    "GROUP",
    "LIBRARY_FROM",
    "PAGE",
    "REFERENCE_OPS",
    "SYMMETRIC",
    "AdaptedLinear",
    "ComponentMemory",
    "ComponentPages",
    "Decoder",
    "DecoderConfig",
    "DecoderLayer",
    "DecoderMetadata",
    "DeltaFactors",
    "DeviceOps",
    "Grid",
    "GridKind",
    "GridPanels",
    "GridStack",
    "JoinedLinear",
    "LinearMode",
    "Packed",
    "Quantized",
    "Stack",
    "StackedLinear",
    "add_rms_norm",
    "add_rms_norm_ref",
    "component_pages_ref",
    "cpu_isa",
    "decoder_ref",
    "dequantize",
    "empty_in_huge_pages",
    "empty_kv",
    "gather_components",
    "greedy",
    "greedy_ref",
    "grid_of",
    "grid_rows",
    "linear",
    "linear_ref",
    "mix",
    "mix_ref",
    "pack",
    "pack_components",
    "pack_grid",
    "paged_attention",
    "paged_attention_ref",
    "quantize",
    "rms_norm",
    "rms_norm_ref",
    "rope",
    "rope_ref",
    "silu_mul",
    "silu_mul_ref",
    "svf_delta_linear",
    "svf_delta_linear_ref",
    "svf_linear",
    "svf_linear_ref",
    "together",
    "triton_ops",
    "unpack",
    "unpack_quantized",
    "write_kv",
    "write_kv_ref",
]

_RENAMED = {"DecoderBatch": "DecoderMetadata", "Way": "LinearMode"}


def __getattr__(name: str) -> object:
    """Old names, which warn."""
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _RENAMED[name]
    warnings.warn(f"zweave.kernels.{name} is now {new}", DeprecationWarning, stacklevel=2)
    return globals()[new]
