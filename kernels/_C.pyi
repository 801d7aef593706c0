# ruff: noqa: N999  the name of an extension module
from collections.abc import Sequence

import torch
from torch import Tensor

def cpu_isa() -> str:
    """Name of the instruction set that the CPU ops use: "scalar", "avx2" or "avx512"."""

def empty_in_huge_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor in pages of 2 MiB where the system grants them, for what steps stream."""

def zeros_in_huge_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The same, zero: pages that are never written take no memory."""

class ComponentPages:
    def __init__(
        self, *, vt: Tensor, u: Tensor, scale: Tensor, pages_of: Tensor, adapted: Tensor
    ) -> None: ...

class AdaptedLinear:
    def __init__(
        self,
        *,
        in_features: int,
        out_features: int,
        dense: Tensor | None,
        vt: Tensor | None,
        u: Tensor | None,
        scale: Tensor | None,
        delta: Tensor | None,
        bias: Tensor | None,
        modes: Tensor,
        supports: Tensor | None = None,
        vt_scale: Tensor | None = None,
        u_scale: Tensor | None = None,
        vt_group: int = 0,
        u_group: int = 0,
        pages: ComponentPages | None = None,
        rest_rank: int = 0,
        rest_vt: Tensor | None = None,
        rest_vt_scale: Tensor | None = None,
        rest_vt_group: int = 0,
        rest_u: Tensor | None = None,
        rest_u_scale: Tensor | None = None,
        rest_u_group: int = 0,
    ) -> None: ...
    def run(self, x: Tensor, slot: Tensor, all_factored: bool) -> Tensor: ...
    def set_merged(self, slot: int, panels: Tensor | None) -> None: ...

class DecoderLayer:
    def __init__(
        self,
        *,
        input_norm: Tensor,
        mlp_norm: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        q: AdaptedLinear,
        k: AdaptedLinear,
        v: AdaptedLinear,
        o: AdaptedLinear,
        gate: AdaptedLinear,
        up: AdaptedLinear,
        down: AdaptedLinear,
        k_cache: Tensor,
        v_cache: Tensor,
        window: int,
    ) -> None: ...

class Decoder:
    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        cos: Tensor,
        sin: Tensor,
        *,
        heads: int,
        kv_heads: int,
        head_size: int,
        scale: float,
        eps: float,
    ) -> None: ...
    def run(
        self,
        x: Tensor,
        residual: Tensor,
        slot: Tensor,
        sequence: Tensor,
        position: Tensor,
        kv_index: Tensor,
        block_table: Tensor,
        all_factored: bool,
        first: int,
        last: int,
    ) -> Tensor: ...
    def set_merged(self, layer: int, linear: int, slot: int, panels: Tensor | None) -> None: ...
