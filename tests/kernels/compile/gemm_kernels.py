"""The kernels of the GEMM as they are compiled: weights, tiles, and which arguments there are."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch

from zweave.kernels.triton.delta_gemm import _delta_gemm_kernel
from zweave.kernels.triton.gemm import _gemm_kernel
from zweave.kernels.triton.gemm_config import Scales, TileConfig
from zweave.kernels.triton.silu_delta_gemm import _silu_delta_gemm_kernel
from zweave.kernels.triton.silu_gemm import _silu_gemm_kernel

from .compiled import VALUE, Types, compiled
from .ptx import check_handover

TOKENS = (1, 16, 17, 33, 65, 128, 4096)
OUT_FEATURES = (192, 576, 14336)


class Weights(SimpleNamespace):
    """A format as the kernels see it: FORMAT, type of the data, GROUP, where the scales go; the tokens' dtype.

    numbers: type of the scales.
    """

    kind: str
    data: str
    group: int
    scales: Scales
    dtype: torch.dtype
    numbers: str = "*fp32"


WEIGHTS = {
    "bf16": Weights(kind="plain", data="*bf16", group=0, scales="none", dtype=torch.bfloat16),
    "f16": Weights(kind="plain", data="*fp16", group=0, scales="none", dtype=torch.float16),
    "f32": Weights(kind="plain", data="*fp32", group=0, scales="none", dtype=torch.float32),
    "int8": Weights(kind="int8", data="*i8", group=0, scales="row", dtype=torch.bfloat16),
    "int8 groups": Weights(kind="int8", data="*i8", group=64, scales="group", dtype=torch.bfloat16),
    "int4": Weights(kind="int4", data="*u8", group=64, scales="group", dtype=torch.bfloat16),
    "fp8": Weights(kind="fp8", data="*u8", group=0, scales="row", dtype=torch.bfloat16),
}

# Weights on a grid, and float32 tokens.
GRIDS = {
    name: Weights(
        kind=kind,
        data="*i8" if kind == "Q8_0" else "*u8",
        group=32,
        scales="grid",
        dtype=dtype,
        numbers=numbers,
    )
    for name, kind, numbers, dtype in (
        ("Q4_0", "Q4_0", "*fp16", torch.bfloat16),
        ("Q4_1", "Q4_1", "*fp16", torch.bfloat16),
        ("Q4_K", "Q4_1", "*fp32", torch.bfloat16),
        ("Q8_0", "Q8_0", "*fp16", torch.bfloat16),
        ("Q4_1 of f32", "Q4_1", "*fp16", torch.float32),
    )
}


def operands(w: Weights, groups: int) -> Types:
    """Types of the operands of a kernel."""
    scale = w.data if w.scales == "none" else w.numbers
    return tuple((kind,) * groups for kind in (VALUE[w.dtype], w.data, scale, "i32", "i32", "i32", "i32"))


def gemm_kernel(
    arch: int,
    aligned: bool,
    tile: TileConfig,
    w: Weights,
    plan: str,
    by_slot: bool,
    groups: int = 1,
    splits: int = 4,
    pdl: bool = False,
) -> Any:
    """The GEMM compiled. by_slot: scaled by slot, without a bias."""
    types = {"products": operands(w, groups), "outputs": ("i32",) * groups}
    types |= dict.fromkeys(("y", "bias"), VALUE[w.dtype])
    types |= dict.fromkeys(("table", "workspace"), "*fp32") | dict.fromkeys(("slot", "semaphores"), "*i32")
    absent = {"bias"} if by_slot else {"table", "slot"}
    absent |= set() if plan == "parallel" else {"workspace", "semaphores"}
    constants: dict[str, object] = dict.fromkeys(absent)
    constants |= {"FORMAT": w.kind, "GROUP": w.group, "SKIP_BASE": by_slot, "SPLIT_K": plan, "PDL": pdl}
    # Triton makes a constant of an argument that is 1.
    constants |= tile_constants(tile) | ({"splits": 1} if splits == 1 else {})
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return compiled(_gemm_kernel, arch, types, constants, aligned, **options)


def delta_gemm_kernel(
    arch: int,
    aligned: bool,
    tile: TileConfig,
    w: Weights,
    u: Weights,
    groups: int = 1,
    pdl: bool = False,
    silu: bool = False,
    factored: bool = False,
) -> Any:
    """The delta linear compiled, its handover checked.

    w: plain weights or a grid, or with `factored` the tokens alone; u: of both factors; silu: gated
    """
    types: dict[str, Types] = {"outputs": ("i32",) * groups}
    types |= {} if factored else {"products": operands(w, groups)}
    types |= dict.fromkeys(("firsts", "deltas"), operands(u, groups)) | {"ranks": ("i32",) * groups}
    types |= dict.fromkeys(("y", "h", "bias"), VALUE[w.dtype]) | dict.fromkeys(
        ("table", "workspace"), "*fp32"
    )
    types |= dict.fromkeys(("slot", "semaphores"), "*i32")
    constants = {"FORMAT": u.kind, "GROUP": u.group, "PDL": pdl} | tile_constants(tile)
    constants |= {"products": None} if factored else {}
    constants |= {} if silu else {"W_FORMAT": w.kind, "W_GROUP": w.group}
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    kernel = _silu_delta_gemm_kernel if silu else _delta_gemm_kernel
    binary = compiled(kernel, arch, types, constants, aligned, **options)
    check_handover(binary.asm["ptx"])
    return binary


def tile_constants(tile: TileConfig) -> dict[str, object]:
    return {"BLOCK_T": tile.block_t, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}


def silu_gemm_kernel(
    arch: int, aligned: bool, tile: TileConfig, w: Weights, plan: str, shared: bool, pdl: bool = False
) -> Any:
    """The gated GEMM compiled, with a bias."""
    types: dict[str, Types] = {"products": operands(w, 2), "outputs": ("i32",)}
    types |= {"y": VALUE[w.dtype], "bias": VALUE[w.dtype], "workspace": "*fp32", "semaphores": "*i32"}
    constants: dict[str, object] = dict.fromkeys(("table", "slot"))
    constants |= {} if plan == "parallel" else {"workspace": None, "semaphores": None}
    constants |= {"SHARED": shared, "SPLIT_K": plan, "PDL": pdl} | tile_constants(tile)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return compiled(_silu_gemm_kernel, arch, types, constants, aligned, **options)


def by_size(tiles: Iterable[TileConfig]) -> list[TileConfig]:
    return sorted(set(tiles), key=lambda tile: (tile.block_t * tile.block_m, tile.num_warps))
