"""The kernels between the products, compiled ahead of time for every architecture: registers, spills, shared memory."""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.kernels.add_components import BLOCK_M, BLOCK_N, STEPS, tile_tokens
from zweave.kernels.mix import _mix_kernel, mix_config
from zweave.kernels.pool_states import BLOCK_N as POOL_BLOCK_N
from zweave.kernels.pool_states import _pool_states_kernel
from zweave.kernels.prefill_attention import _prefill_attention_kernel
from zweave.kernels.rms_norm import MAX_WIDTH, _rms_norm_kernel
from zweave.kernels.rope_store import BLOCK_H, _rope_store_kernel
from zweave.kernels.sample import sample_config
from zweave.kernels.scale_by_slot import _scale_by_slot_kernel
from zweave.kernels.silu_mul import _silu_mul_kernel
from zweave.kernels.triton.attention_config import decode_config, prefill_config
from zweave.kernels.triton.component_tile import _add_components_kernel, _component_sums_kernel
from zweave.kernels.triton.decode_attention import (
    BLOCK_S,
    SPLIT_SIZE,
    _combine_splits_kernel,
    _decode_attention_kernel,
)
from zweave.kernels.triton.row_config import row_config, whole_row_config
from zweave.kernels.triton.sample import _sample_kernel

from .compiled import DEVICES, SHARED_MEMORY, VALUE, check_resources, compiled

pytest.importorskip("triton")


@pytest.mark.parametrize("arch", SHARED_MEMORY, ids="sm_{}".format)
def test_mix(arch, tmp_path) -> None:
    for config in {mix_config(576), mix_config(97920)}:
        types = dict.fromkeys(("table", "alpha", "z"), "*fp32")
        constants = {"BLOCK_R": config.block_r}
        binary = compiled(_mix_kernel, arch, types, constants, True, num_warps=config.num_warps)
        check_resources(binary, arch, tmp_path, f"mix {config}")


def row_kernels(dtype: torch.dtype) -> Iterator[tuple[Any, dict[str, str], dict[str, object], int]]:
    """The kernels between the products of a layer: kernel, types by argument, constants, warps."""
    value = VALUE[dtype]
    types = dict.fromkeys(("x", "y", "gate", "up", "h", "q", "k", "v", "k_cache", "v_cache"), value)
    types |= dict.fromkeys(("residual", "weight", "table", "cos", "sin", "q_norm", "k_norm"), "*fp32")
    types |= dict.fromkeys(("slot", "position", "query_start", "row", "first", "count"), "*i32")
    types |= {"kv_index": "*i64", "sums": "*fp64", "eps": "fp32"}
    for width in (64, 576, 4096, MAX_WIDTH):
        config = whole_row_config(width)
        tile = {"BLOCK_T": config.block_t, "BLOCK_N": config.block_n}
        yield _rms_norm_kernel, types, {"residual": None, **tile}, config.num_warps
        yield _rms_norm_kernel, types, tile, config.num_warps
    for width in (64, 14336):
        config = row_config(width)
        yield _silu_mul_kernel, types, {"BLOCK_N": config.block_n}, config.num_warps
        for zero_base in (False, True):
            constants = {"ZERO_BASE": zero_base, "BLOCK_R": config.block_n}
            yield _scale_by_slot_kernel, types, constants, config.num_warps
    for size, absent in ((64, {"q_norm": None, "k_norm": None}), (128, {}), (256, {})):
        heads = {"H": 9, "G": 3, "D": size, "BLOCK_SIZE": 16, "BLOCK_H": BLOCK_H, "BLOCK_D": size // 2}
        yield _rope_store_kernel, types, absent | heads, 1
    yield _pool_states_kernel, types, {"BLOCK_N": POOL_BLOCK_N}, POOL_BLOCK_N // 32


ROW_TARGETS = [
    pytest.param(
        arch, dtype, "all", id=f"sm_{arch}-{str(dtype)[6:]}-every tile", marks=pytest.mark.exhaustive
    )
    for arch, dtype in product(SHARED_MEMORY, VALUE)
]


@pytest.mark.parametrize(
    ("arch", "dtype", "extent"),
    [pytest.param(90, torch.bfloat16, "last", id="sm_90-bfloat16"), *ROW_TARGETS],
)
def test_kernels_of_rows(arch, dtype, extent, tmp_path) -> None:
    cases = list(row_kernels(dtype))
    if extent == "last":
        cases = list({case[0]: case for case in cases}.values())
    for kernel, types, constants, num_warps in cases:
        binary = compiled(kernel, arch, types, constants, True, num_warps=num_warps)
        used = check_resources(binary, arch, tmp_path, f"{kernel.__name__} {constants}")
        assert used["SHARED"] <= 48 * 1024
        if kernel in (_silu_mul_kernel, _scale_by_slot_kernel):
            assert re.search(r"ld\.global\S*\.v4\.b32", binary.asm["ptx"]), "accesses of less than 16 bytes"


def attention_targets() -> Iterator[Any]:
    """Architecture, dtype, head size, query heads to a key-value head."""
    for target in product(SHARED_MEMORY, VALUE, (64, 80, 128, 256), (3, 48)):
        arch, dtype, size, group = target
        marks = () if target == (90, torch.bfloat16, 128, 3) else pytest.mark.exhaustive
        yield pytest.param(*target, id=f"sm_{arch}-{VALUE[dtype][1:]}-{size}-{group}", marks=marks)


def check_attention(binary: Any, arch: int, dtype: torch.dtype, folder: Path, name: str) -> None:
    """Checks what a kernel takes, and that it copies pages asynchronously and multiplies by tensor cores."""
    check_resources(binary, arch, folder, name)
    ptx = binary.asm["ptx"]
    assert "cp.async.c" in ptx
    assert ("fma.rn.f32" if dtype == torch.float32 else "mma") in ptx
    assert "mma" not in ptx or dtype != torch.float32


@pytest.mark.parametrize(("arch", "dtype", "size", "group"), list(attention_targets()))
def test_attention(arch, dtype, size, group, tmp_path) -> None:
    types = dict.fromkeys(("q", "k_cache", "v_cache", "y"), VALUE[dtype]) | {"scale": "fp32"}
    types |= dict.fromkeys(("acc_splits", "max_splits", "sum_splits"), "*fp32")
    types |= dict.fromkeys(("block_table", "sequence", "position", "query_start", "first_position"), "*i32")
    shapes = {"GROUP": group, "HEAD_SIZE": size, "BLOCK_SIZE": 16}
    decode = decode_config(group, size, dtype)
    prefill = prefill_config(size, dtype, DEVICES[arch])
    one_split = dict.fromkeys(("sequence", "acc_splits", "max_splits", "sum_splits"))
    for kernel, config, constants in (
        (_decode_attention_kernel, decode, {"SPLIT_SIZE": SPLIT_SIZE}),
        (_decode_attention_kernel, decode, {"SPLIT_SIZE": SPLIT_SIZE} | one_split),
        (_prefill_attention_kernel, prefill, {}),
    ):
        tile = {"BLOCK_M": config.block_m, "BLOCK_D": config.block_d, "BLOCK_J": config.block_j}
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        binary = compiled(kernel, arch, types, shapes | constants | tile, True, **options)
        check_attention(binary, arch, dtype, tmp_path, f"{kernel.__name__} {config}")
    constants: dict[str, object] = {
        "HEAD_SIZE": size,
        "SPLIT_SIZE": SPLIT_SIZE,
        "BLOCK_S": BLOCK_S,
        "BLOCK_D": decode.block_d,
    }
    binary = compiled(_combine_splits_kernel, arch, types, constants, True, num_warps=4)
    check_resources(binary, arch, tmp_path, "combine")


@pytest.mark.parametrize(
    "arch",
    [90, *(pytest.param(arch, marks=pytest.mark.exhaustive) for arch in SHARED_MEMORY if arch != 90)],
)
def test_sample(arch: int, tmp_path: Path) -> None:
    types = dict.fromkeys(("logits", "temperature", "top_p", "min_p"), "*fp32") | {"top_k": "*i32"}
    types |= dict.fromkeys(("seed", "index", "ids"), "*i64") | {"is_finite": "*i1"}
    for vocabulary in (4096, 150_000):
        config = sample_config(vocabulary, DEVICES[arch])
        constants = {"BLOCK_V": config.block_v}
        binary = compiled(_sample_kernel, arch, types, constants, False, num_warps=config.num_warps)
        used = check_resources(binary, arch, tmp_path, f"sample {config}")
        assert used["SHARED"] <= 4096


def component_targets() -> Iterator[Any]:
    """Architecture, dtype, linears, tokens and inputs."""
    for target in product(SHARED_MEMORY, VALUE, ((3, 1, 4096), (2, 17, 4096), (1, 4096, 14336))):
        arch, dtype, (groups, tokens, inputs) = target
        marks = () if target == (90, torch.bfloat16, (3, 1, 4096)) else pytest.mark.exhaustive
        yield pytest.param(
            arch, dtype, groups, tokens, inputs, id=f"sm_{arch}-{VALUE[dtype][1:]}-{groups}", marks=marks
        )


@pytest.mark.parametrize(("arch", "dtype", "groups", "tokens", "inputs"), list(component_targets()))
def test_components(
    arch: int, dtype: torch.dtype, groups: int, tokens: int, inputs: int, tmp_path: Path
) -> None:
    types: dict[str, Any] = dict.fromkeys(("x", "y"), VALUE[dtype]) | {
        "h": "*fp32",
        "outputs": ("i32",) * groups,
    }
    types |= {"vt": (VALUE[dtype],) * groups, "u": (VALUE[dtype],) * groups, "scale": ("*fp32",) * groups}
    types |= {"slot": "*i32", "pages": "*i32"}
    tile: dict[str, object] = {
        "SPLITS": -(-inputs // (BLOCK_N * STEPS)),
        "BLOCK_T": tile_tokens(tokens, dtype),
    }
    for kernel, constants in (
        (_component_sums_kernel, {"BLOCK_N": BLOCK_N, "STEPS": STEPS}),
        (_add_components_kernel, {"BLOCK_M": BLOCK_M}),
    ):
        binary = compiled(kernel, arch, types, tile | constants, True, num_warps=4, num_stages=3)
        check_resources(binary, arch, tmp_path, f"{kernel.__name__} {tile}")
        ptx = binary.asm["ptx"]
        assert ("fma.rn.f32" if dtype == torch.float32 else "mma") in ptx
