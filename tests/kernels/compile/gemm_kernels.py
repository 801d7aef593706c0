"""The kernels of the GEMM as they are compiled: weights, tiles, and which arguments there are."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch

from zweave.kernels.triton.gemm import _gemm_kernel
from zweave.kernels.triton.gemm_config import Scales, TileConfig
from zweave.kernels.triton.silu_gemm import _silu_gemm_kernel

from .compiled import VALUE, Types, compiled

TOKENS = (1, 16, 17, 33, 65, 128, 4096)
OUT_FEATURES = (192, 576, 14336)


class Weights(SimpleNamespace):
    """A format as the kernels see it: FORMAT, type of the data, GROUP, where the scales go; the tokens' dtype."""

    kind: str
    data: str
    group: int
    scales: Scales
    dtype: torch.dtype


WEIGHTS = {
    "bf16": Weights(kind="plain", data="*bf16", group=0, scales="none", dtype=torch.bfloat16),
    "f16": Weights(kind="plain", data="*fp16", group=0, scales="none", dtype=torch.float16),
    "f32": Weights(kind="plain", data="*fp32", group=0, scales="none", dtype=torch.float32),
    "int8": Weights(kind="int8", data="*i8", group=0, scales="row", dtype=torch.bfloat16),
    "int8 groups": Weights(kind="int8", data="*i8", group=64, scales="group", dtype=torch.bfloat16),
    "int4": Weights(kind="int4", data="*u8", group=64, scales="group", dtype=torch.bfloat16),
    "fp8": Weights(kind="fp8", data="*u8", group=0, scales="row", dtype=torch.bfloat16),
}


def operands(w: Weights, groups: int) -> Types:
    """Types of the operands of a kernel."""
    scale = w.data if w.scales == "none" else "*fp32"
    return tuple((kind,) * groups for kind in (VALUE[w.dtype], w.data, scale, "i32", "i32", "i32", "i32"))


def gemm_kernel(
    arch: int,
    aligned: bool,
    tile: TileConfig,
    w: Weights,
    u: Weights | None,
    plan: str,
    by_slot: bool,
    groups: int = 1,
    splits: int = 4,
    pdl: bool = False,
) -> Any:
    """The GEMM compiled. w: its weights; u: those of a delta; by_slot: scaled by slot, without a bias."""
    types = {"products": operands(w, groups), "deltas": operands(u, groups) if u else "constexpr"}
    types |= {"outputs": ("i32",) * groups} | dict.fromkeys(("y", "bias"), VALUE[w.dtype])
    types |= dict.fromkeys(("table", "workspace"), "*fp32") | dict.fromkeys(("slot", "semaphores"), "*i32")
    absent = {"bias"} if by_slot else {"table"}
    absent |= {"slot"} if u is None and not by_slot else set()
    absent |= {"deltas"} if u is None else set()
    absent |= set() if plan == "parallel" else {"workspace", "semaphores"}
    constants: dict[str, object] = dict.fromkeys(absent)
    constants |= {"W_FORMAT": w.kind, "W_GROUP": w.group}
    constants |= {"U_FORMAT": u.kind if u else "plain", "U_GROUP": u.group if u else 0}
    merged = plan == "parallel" and u is not None and u.kind == "plain"
    constants |= {"SKIP_BASE": by_slot, "SPLIT_K": plan, "MERGED": merged, "PDL": pdl}
    constants |= {"BLOCK_T": tile.block_t, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    # Triton makes a constant of an argument that is 1.
    constants |= {"w_splits": 1} if splits == 1 else {}
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return compiled(_gemm_kernel, arch, types, constants, aligned, **options)


def silu_gemm_kernel(
    arch: int,
    aligned: bool,
    tile: TileConfig,
    w: Weights,
    plan: str,
    delta: bool,
    shared: bool,
    pdl: bool = False,
) -> Any:
    """The gated GEMM compiled, with a bias."""
    types: dict[str, Types] = {"products": operands(w, 2), "deltas": operands(w, 2)}
    types |= {"outputs": ("i32",), "y": VALUE[w.dtype], "bias": VALUE[w.dtype], "slot": "*i32"}
    types |= {"workspace": "*fp32", "semaphores": "*i32"}
    constants: dict[str, object] = {"table": None} | ({} if delta else {"deltas": None, "slot": None})
    constants |= {} if plan == "parallel" else {"workspace": None, "semaphores": None}
    merged = plan == "parallel" and delta
    constants |= {"SHARED": shared, "SPLIT_K": plan, "MERGED": merged, "PDL": pdl}
    constants |= {"BLOCK_T": tile.block_t, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return compiled(_silu_gemm_kernel, arch, types, constants, aligned, **options)


def by_size(tiles: Iterable[TileConfig]) -> list[TileConfig]:
    return sorted(set(tiles), key=lambda tile: (tile.block_t * tile.block_m, tile.num_warps))
