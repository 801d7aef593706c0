"""The Triton kernels compiled ahead of time for every architecture: instructions, registers, spills, shared memory."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
import torch

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
from zweave.kernels.triton.decode_attention import (
    BLOCK_S,
    SPLIT_SIZE,
    _combine_splits_kernel,
    _decode_attention_kernel,
)
from zweave.kernels.triton.gemm import _gemm_kernel
from zweave.kernels.triton.gemm_config import (
    SMALL_TOKENS,
    Device,
    Scales,
    TileConfig,
    paired_tile_config,
    split_size,
    tile_config,
)
from zweave.kernels.triton.row_config import row_config, whole_row_config
from zweave.kernels.triton.sample import _sample_kernel
from zweave.kernels.triton.silu_gemm import _silu_gemm_kernel

triton = pytest.importorskip("triton")

# Shared memory that one program may use, in KiB (CUDA programming guide, technical specifications).
SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
INSTRUCTION = dict.fromkeys(SHARED_MEMORY, "mma.sync") | {90: "wgmma.mma_async", 100: "tcgen05.mma"}
# Addresses that wait on the stack for the end of a sum, stored and loaded once a tile.
FEW_WORDS = 16
VALUE = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
TOKENS = (1, 16, 17, 33, 65, 128, 4096)
OUT_FEATURES = (192, 576, 14336)
DEVICES = {arch: Device(divmod(arch, 10), 132) for arch in SHARED_MEMORY}


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


def gemm_targets() -> Iterator[Any]:
    """Architecture, alignment, weights, and which tiles: "ends", the smallest and the largest, or "all"."""
    on_every_run = {(90, True, name) for name in ("bf16", "f32", "int4")}
    on_every_run |= {(80, True, "bf16"), (100, True, "bf16"), (90, False, "bf16")}
    for arch, aligned, name in product(SHARED_MEMORY, (True, False), WEIGHTS):
        target, rows = (arch, aligned, WEIGHTS[name]), "aligned" if aligned else "odd"
        if (arch, aligned, name) in on_every_run:
            yield pytest.param(*target, "ends", id=f"sm_{arch}-{rows}-{name}")
        yield pytest.param(
            *target, "all", id=f"sm_{arch}-{rows}-{name}-every tile", marks=pytest.mark.exhaustive
        )


TARGETS = pytest.mark.parametrize(("arch", "aligned", "weights", "extent"), list(gemm_targets()))


@pytest.fixture(autouse=True)
def kept_kernels(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton keeps what it compiles by content, beside pytest's own cache: a second run compiles nothing."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(pytestconfig.cache.mkdir("triton")))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


Types: TypeAlias = "str | tuple[Types, ...]"


def leaves(kind: Types, path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Where the values of an argument lie, within its tuples."""
    if isinstance(kind, tuple):
        for i, inner in enumerate(kind):
            yield from leaves(inner, (*path, i))
    else:
        yield path


def compiled(
    kernel: Any,
    arch: int,
    types: dict[str, Types],
    constants: dict[str, object],
    aligned: bool,
    **options: int,
) -> Any:
    """Compiles a kernel for an architecture. types: by argument, i32 for the rest; aligned: to 16, what can be."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    odd = {"T", "S", "E", "P", "H", "eps", "scale", "window", "splits", "steps", "w_splits", "u_splits"}
    odd |= set(constants)
    attributes = {
        path: [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if aligned and name not in odd
        for path in leaves(signature[name], (i,))
    }
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(binary: Any, folder: Path) -> dict[str, int]:
    """Registers, stack, local and shared memory of a compiled kernel, as cuobjdump sees them."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(binary.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listing = subprocess.check_output([tool, "--dump-resource-usage", cubin], text=True)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    return found | {"SHARED": binary.metadata.shared}


def check(binary: Any, arch: int, dtype: torch.dtype, folder: Path, name: str, stack: int = 0) -> None:
    """Prints what a kernel takes; it spills nothing beyond so many bytes of stack, fits the device, and multiplies by
    one kind of instruction."""
    used = resources(binary, folder)
    print(f"sm_{arch} {name}: {used}")
    assert used["STACK"] <= stack and used["LOCAL"] == 0, f"{name} spills"
    assert used["SHARED"] <= 1024 * SHARED_MEMORY[arch]
    # Another kind of instruction might sum in another order.
    ptx = binary.asm["ptx"]
    assert ("fma.rn.f32" if dtype == torch.float32 else INSTRUCTION[arch]) in ptx
    wanted = None if dtype == torch.float32 else INSTRUCTION[arch]
    assert not any(other in ptx for other in INSTRUCTION.values() if other != wanted)


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


def by_size(tiles: Iterable[TileConfig]) -> list[TileConfig]:
    return sorted(set(tiles), key=lambda tile: (tile.block_t * tile.block_m, tile.num_warps))


@TARGETS
def test_tiles_of_the_gemm(arch, aligned, weights, extent, tmp_path) -> None:
    device = DEVICES[arch]
    tiles = by_size(
        tile_config(t, m, weights.dtype, weights.scales, device, aligned)
        for t, m in product(TOKENS, OUT_FEATURES)
    )
    # Of the plans serial sums need most registers, and of the epilogues the scales of slots.
    cases = [(tile, "serial", True, 4) for tile in (tiles if extent == "all" else tiles[-1:])]
    cases += [(tiles[0], "serial", False, 1)] + [
        (tile, "parallel", True, 4) for tile in (tiles[0], tiles[-1])
    ]
    for tile, plan, by_slot, splits in cases:
        binary = gemm_kernel(arch, aligned, tile, weights, None, plan, by_slot, splits=splits)
        # Where the scales of slots lie is worked out before the sum, and waits on the stack for its end: at most 72
        # bytes a thread, stored and loaded once a tile.
        stack = 72 if by_slot else 0
        check(binary, arch, weights.dtype, tmp_path, f"{weights.kind} {tile} {plan}", stack)


@TARGETS
def test_tiles_of_the_gemm_with_a_delta(arch, aligned, weights, extent, tmp_path) -> None:
    dense = next(w for w in WEIGHTS.values() if w.kind == "plain" and w.dtype == weights.dtype)
    scales: Scales = "group" if weights.scales == "group" else "none"
    tiles = by_size(
        tile_config(t, m, weights.dtype, scales, DEVICES[arch], aligned)
        for t, m in product(TOKENS, OUT_FEATURES)
    )
    cases = [(tile, "serial") for tile in (tiles if extent == "all" else tiles[-1:])]
    for tile, plan in [*cases, (tiles[0], "parallel")]:
        binary = gemm_kernel(arch, aligned, tile, dense, weights, plan, False)
        stack = FEW_WORDS if weights.dtype == torch.float32 else 0
        check(binary, arch, weights.dtype, tmp_path, f"delta {weights.kind} {tile} {plan}", stack)


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
    types |= {"y": VALUE[w.dtype], "bias": VALUE[w.dtype], "slot": "*i32"}
    types |= {"workspace": "*fp32", "semaphores": "*i32"}
    constants: dict[str, object] = {"table": None} | ({} if delta else {"deltas": None, "slot": None})
    constants |= {} if plan == "parallel" else {"workspace": None, "semaphores": None}
    merged = plan == "parallel" and delta
    constants |= {"SHARED": shared and not merged, "SPLIT_K": plan, "MERGED": merged, "PDL": pdl}
    constants |= {"BLOCK_T": tile.block_t, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return compiled(_silu_gemm_kernel, arch, types, constants, aligned, **options)


GROUPED = pytest.mark.parametrize(
    ("arch", "aligned", "name"),
    [
        pytest.param(
            *target,
            id=f"sm_{target[0]}-{'aligned' if target[1] else 'odd'}-{target[2]}",
            marks=() if target == (90, True, "bf16") else pytest.mark.exhaustive,
        )
        for target in product(SHARED_MEMORY, (True, False), ("bf16", "f32"))
    ],
)


@GROUPED
def test_tiles_of_three_groups(arch, aligned, name, tmp_path) -> None:
    w = WEIGHTS[name]
    tiles = by_size(
        tile_config(t, m, w.dtype, "none", DEVICES[arch], aligned) for t, m in product(TOKENS, OUT_FEATURES)
    )
    for tile, plan in ((tiles[0], "parallel"), (tiles[-1], "serial")):
        binary = gemm_kernel(arch, aligned, tile, w, w, plan, False, groups=3)
        check(binary, arch, w.dtype, tmp_path, f"groups {name} {tile} {plan}", FEW_WORDS)
        if aligned:
            # The choice of a pointer leaves it aligned.
            assert re.search(r"cp\.async\S* \[[^]]*\], \[[^]]*\], 0x10", binary.asm["ptx"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "odd"])
@pytest.mark.parametrize("arch", SHARED_MEMORY)
def test_tiles_of_three_groups_in_bytes(arch, aligned, tmp_path) -> None:
    """As deltas beside plain weights, and as the products of many tokens' deltas."""
    dense, int8 = WEIGHTS["bf16"], WEIGHTS["int8"]
    for w, u in ((dense, int8), (int8, None)):
        tiles = by_size(
            tile_config(
                t if w is dense else min(t, SMALL_TOKENS), m, dense.dtype, w.scales, DEVICES[arch], aligned
            )
            for t, m in product(TOKENS, OUT_FEATURES)
        )
        for tile, plan in ((tiles[0], "parallel"), (tiles[-1], "serial")):
            binary = gemm_kernel(arch, aligned, tile, w, u, plan, False, groups=3)
            check(binary, arch, dense.dtype, tmp_path, f"groups in bytes {tile} {plan}", FEW_WORDS)


@GROUPED
def test_tiles_of_the_gated_gemm(arch, aligned, name, tmp_path) -> None:
    w = WEIGHTS[name]
    tiles = by_size(
        paired_tile_config(t, m, w.dtype, DEVICES[arch], aligned) for t, m in product(TOKENS, OUT_FEATURES)
    )
    cases = [(tiles[0], "parallel", True, False), (tiles[-1], "serial", True, True)]
    for tile, plan, delta, shared in cases:
        binary = silu_gemm_kernel(arch, aligned, tile, w, plan, delta, shared)
        check(binary, arch, w.dtype, tmp_path, f"gated {name} {tile} {plan}", FEW_WORDS)


PDL = pytest.mark.parametrize(
    ("arch", "name"),
    [
        pytest.param(
            *target,
            id="sm_{}-{}".format(*target),
            marks=() if target == (90, "bf16") else pytest.mark.exhaustive,
        )
        for target in product((90, 100, 120), ("bf16", "f32", "int4"))
    ],
)


@PDL
def test_dependent_launches_touch_no_memory_before_they_wait(arch, name, tmp_path) -> None:
    """But for prefetching weights: a store or an atomic before would be a race with the kernel before."""
    w = WEIGHTS[name]
    tile = tile_config(16, 576, w.dtype, w.scales, DEVICES[arch], True)
    binaries = [
        gemm_kernel(arch, True, tile, w, None, plan, by_slot, pdl=True)
        for plan, by_slot in (("parallel", True), ("serial", False))
    ]
    if w.kind == "plain":
        binaries.append(gemm_kernel(arch, True, tile, w, w, "parallel", False, groups=3, pdl=True))
        pair = paired_tile_config(16, 576, w.dtype, DEVICES[arch], True)
        binaries.append(silu_gemm_kernel(arch, True, pair, w, "parallel", True, False, pdl=True))
    for binary in binaries:
        check(binary, arch, w.dtype, tmp_path, f"dependent {name}", FEW_WORDS)
        before, wait, after = binary.asm["ptx"].partition("griddepcontrol.wait")
        assert wait and "griddepcontrol.launch_dependents" in before and "prefetch.global.L2" in before
        assert not re.search(r"\b(ld|st|atom|red|ldu|cp\.async\S*)\.global|cp\.async|\b(atom|red)\.", before)
        assert "st.global" in after


@pytest.mark.parametrize("arch", SHARED_MEMORY, ids="sm_{}".format)
def test_mix(arch, tmp_path) -> None:
    for config in {mix_config(576), mix_config(97920)}:
        types = dict.fromkeys(("table", "alpha", "z"), "*fp32")
        constants = {"BLOCK_R": config.block_r}
        binary = compiled(_mix_kernel, arch, types, constants, True, num_warps=config.num_warps)
        used = resources(binary, tmp_path)
        print(f"sm_{arch} {config}: {used}")
        assert used["STACK"] == used["LOCAL"] == 0


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
    for arch, dtype in product((80, 86, 89, 90, 100, 120), VALUE)
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
        used = resources(binary, tmp_path)
        print(f"sm_{arch} {kernel.__name__} {constants}: {used}")
        assert used["STACK"] == used["LOCAL"] == 0, f"{kernel.__name__} spills"
        assert used["SHARED"] <= 48 * 1024
        if kernel in (_silu_mul_kernel, _scale_by_slot_kernel):
            assert re.search(r"ld\.global\S*\.v4\.b32", binary.asm["ptx"]), "accesses of less than 16 bytes"


@pytest.mark.parametrize("format", ["int8", "int4", "fp8"])
def test_quantised_weights_stay_small_until_they_are_in_registers(format) -> None:
    """On Hopper the left operand comes from registers, and the pipeline's copies are of quantised bytes."""
    weights = WEIGHTS[format]
    tile = tile_config(16, 576, weights.dtype, weights.scales, DEVICES[90], True)
    binary = gemm_kernel(90, True, tile, weights, None, "serial", False, splits=1)
    assert re.search(r"wgmma\.mma_async\S+\s+\{[^}]*\},\s*\{", binary.asm["ptx"])
    assert "fma.rn.bf16x2" in binary.asm["ptx"]
    byte = tile.block_m * tile.block_n // (2 if format == "int4" else 1)
    assert binary.metadata.shared <= tile.num_stages * (byte + 2 * tile.block_t * tile.block_n)


def test_the_order_of_a_sum_does_not_depend_on_the_tokens() -> None:
    for weights, device in product(WEIGHTS.values(), DEVICES.values()):
        for out_features, in_features in product(OUT_FEATURES, (576, 4096, 14336)):
            size = split_size(out_features, in_features, device)
            configs = {
                tile_config(t, out_features, weights.dtype, weights.scales, device, True) for t in TOKENS
            }
            assert len(configs) > 1
            assert len({config.block_n for config in configs}) == 1
            assert all(size % config.block_n == 0 for config in configs)


def test_splits_fill_a_large_chip_and_are_not_too_short() -> None:
    device = DEVICES[90]
    assert split_size(4096, 4096, device) == 1024
    assert split_size(14336, 4096, device) == 4096
    assert split_size(1024, 4096, device) == 1024
    assert split_size(576, 1536, device) == 384
    assert split_size(64, 1, device) == 128
    assert split_size(64, 0, device) == 128


def attention_targets() -> Iterator[Any]:
    """Architecture, dtype, head size, query heads to a key-value head."""
    for target in product(SHARED_MEMORY, VALUE, (64, 80, 128, 256), (3, 48)):
        arch, dtype, size, group = target
        marks = () if target == (90, torch.bfloat16, 128, 3) else pytest.mark.exhaustive
        yield pytest.param(*target, id=f"sm_{arch}-{VALUE[dtype][1:]}-{size}-{group}", marks=marks)


def check_attention(binary: Any, arch: int, dtype: torch.dtype, folder: Path, name: str) -> None:
    """Prints what a kernel takes; it spills nothing, fits the device, and copies pages asynchronously."""
    used = resources(binary, folder)
    print(f"sm_{arch} {name}: {used}")
    # Two or four words wait on the stack for the end of the sums, stored and loaded once a tile.
    assert used["STACK"] <= 16 and used["LOCAL"] == 0, f"{name} spills"
    assert used["SHARED"] <= 1024 * SHARED_MEMORY[arch]
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
    prefill = prefill_config(size, dtype, Device(divmod(arch, 10), 132))
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
    constants = {"HEAD_SIZE": size, "SPLIT_SIZE": SPLIT_SIZE, "BLOCK_S": BLOCK_S, "BLOCK_D": decode.block_d}
    used = resources(compiled(_combine_splits_kernel, arch, types, constants, True, num_warps=4), tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


@pytest.mark.parametrize(
    "arch",
    [90, *(pytest.param(arch, marks=pytest.mark.exhaustive) for arch in (80, 86, 89, 100, 120))],
)
def test_sample(arch: int, tmp_path: Path) -> None:
    types = dict.fromkeys(("logits", "temperature", "top_p", "min_p"), "*fp32") | {"top_k": "*i32"}
    types |= dict.fromkeys(("seed", "index", "ids"), "*i64") | {"is_finite": "*i1"}
    for vocabulary in (4096, 150_000):
        config = sample_config(vocabulary, Device(divmod(arch, 10), 132))
        constants = {"BLOCK_V": config.block_v}
        binary = compiled(_sample_kernel, arch, types, constants, False, num_warps=config.num_warps)
        used = resources(binary, tmp_path)
        print(f"sm_{arch} sample {config}: {used}")
        assert used["STACK"] == used["LOCAL"] == 0, "spills"
        assert used["SHARED"] <= 4096


@pytest.mark.exhaustive
@pytest.mark.slow
def test_kernels_compile_under_triton_3_6_too() -> None:
    """What the measured devices have. Registers, pipelines and names differ between versions."""
    folder = os.environ.get("ZWEAVE_TRITON_36")
    if folder is None:
        pytest.skip("ZWEAVE_TRITON_36 names no folder with Triton 3.6")
    environment = {name: value for name, value in os.environ.items() if name != "ZWEAVE_TRITON_36"}
    environment["PYTHONPATH"] = folder
    version = subprocess.check_output(
        [sys.executable, "-c", "import triton; print(triton.__version__)"], env=environment, text=True
    )
    assert version.startswith("3.6.")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
