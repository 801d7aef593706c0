"""The Triton kernels compiled ahead of time for every architecture: instructions, registers, spills, shared memory."""

import re
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zweave.kernels.mix import _mix_kernel, mix_config
from zweave.kernels.svf_delta_linear import _svf_delta_linear_kernel
from zweave.kernels.triton.gemm import _product_kernel
from zweave.kernels.triton.gemm_config import (
    Device,
    Scales,
    TileConfig,
    delta_tile_config,
    parts_config,
    tile_config,
)

triton = pytest.importorskip("triton")

# Shared memory that one program may use, in bytes (CUDA programming guide, technical specifications).
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
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
# The fast tests make do with Hopper and rows that begin at multiples of 16 values.
ARCHITECTURES = pytest.mark.parametrize(
    ("arch", "aligned"),
    [
        pytest.param(
            arch,
            aligned,
            id=f"sm_{arch}-{'aligned' if aligned else 'odd'}",
            marks=() if (arch, aligned) == (90, True) else pytest.mark.slow,
        )
        for arch, aligned in product(SHARED_MEMORY, (True, False))
    ],
)
ALL_WEIGHTS = pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    return tmp_path


def compiled(
    kernel: Any, arch: int, types: dict[str, str], constants: dict[str, object], aligned: bool, **options: int
) -> Any:
    """Compiles a kernel for an architecture. types: by argument, i32 for the rest; aligned: to 16, what can be."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    odd = {"T", "S", "E", "parts", "part_steps", "w_parts", "u_parts"} | set(constants)
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if aligned and name not in odd
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


def check(binary: Any, arch: int, dtype: torch.dtype, folder: Path, name: str) -> None:
    """Prints what a kernel takes; it spills nothing, fits the device, and multiplies by one kind of instruction."""
    used = resources(binary, folder)
    print(f"sm_{arch} {name}: {used}")
    assert used["STACK"] == used["LOCAL"] == 0, f"{name} spills"
    assert used["SHARED"] <= SHARED_MEMORY[arch]
    # Another kind of instruction might sum in another order.
    ptx = binary.asm["ptx"]
    assert ("fma.rn.f32" if dtype == torch.float32 else INSTRUCTION[arch]) in ptx
    wanted = None if dtype == torch.float32 else INSTRUCTION[arch]
    assert not any(other in ptx for other in INSTRUCTION.values() if other != wanted)


def of_tile(tile: TileConfig, weights: Weights, plan: str) -> dict[str, object]:
    """The constants that both kernels share."""
    constants: dict[str, object] = {"FORMAT": weights.kind, "GROUP": weights.group, "PLAN": plan}
    constants |= {"BLOCK_T": tile.block_t, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "UPCAST": False}
    return constants | ({} if plan == "side by side" else {"workspace": None, "counter": None})


def launched(tile: TileConfig) -> dict[str, int]:
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


def product_cases(weights: Weights, arch: int, aligned: bool) -> Iterator[tuple[TileConfig, str, str]]:
    """Tile, plan and scale: each tile with two running sums and the longest epilogue, some in the other plans."""
    device = DEVICES[arch]
    tiles = {
        tile_config(t, m, weights.dtype, weights.scales, device, aligned)
        for t, m in product(TOKENS, OUT_FEATURES)
    }
    smallest, *_, largest = sorted(tiles, key=lambda tile: tile.block_t * tile.block_m)
    for tile in tiles:
        yield tile, "in turn", "mixture"
    yield smallest, "side by side", "slot"
    yield smallest, "whole", "one"
    yield largest, "side by side", "slot"


@ALL_WEIGHTS
@ARCHITECTURES
def test_every_tile_of_the_product(arch, aligned, weights, fresh_cache) -> None:
    value = VALUE[weights.dtype]
    types = dict.fromkeys(("x", "y", "bias"), value) | {"w": weights.data, "slot": "*i32", "counter": "*i32"}
    types |= dict.fromkeys(("w_scale", "table", "alpha", "workspace"), "*fp32")
    absent = {"one": ("table", "slot", "alpha"), "slot": ("alpha",), "mixture": ("slot",)}
    for tile, plan, scale in product_cases(weights, arch, aligned):
        constants = of_tile(tile, weights, plan) | {"SCALE": scale, "SKIP_BASE": scale == "slot"}
        constants |= {"HAS_BIAS": scale == "one"} | dict.fromkeys(absent[scale])
        constants |= {} if scale == "one" else {"bias": None}
        constants |= {} if weights.kind != "plain" else {"w_scale": None}
        constants |= {"parts": 1} if plan == "whole" else {}
        binary = compiled(_product_kernel, arch, types, constants, aligned, **launched(tile))
        check(binary, arch, weights.dtype, fresh_cache, f"{weights.kind} {tile} {plan} {scale}")


@ALL_WEIGHTS
@ARCHITECTURES
def test_every_tile_of_the_delta(arch, aligned, weights, fresh_cache) -> None:
    value = VALUE[weights.dtype]
    types = dict.fromkeys(("x", "w", "h", "y", "bias"), value) | {"u": weights.data}
    types |= {"u_scale": "*fp32", "workspace": "*fp32", "slot": "*i32", "counter": "*i32"}
    tiles = {
        delta_tile_config(t, m, weights.dtype, weights.scales, DEVICES[arch], aligned)
        for t, m in product(TOKENS, OUT_FEATURES)
    }
    smallest = min(tiles, key=lambda tile: tile.block_t)
    for tile, plan in [*((tile, "in turn") for tile in tiles), (smallest, "side by side")]:
        constants = of_tile(tile, weights, plan) | {"HAS_BIAS": True}
        constants |= {} if weights.kind != "plain" else {"u_scale": None}
        binary = compiled(_svf_delta_linear_kernel, arch, types, constants, aligned, **launched(tile))
        check(binary, arch, weights.dtype, fresh_cache, f"delta {weights.kind} {tile} {plan}")


@pytest.mark.parametrize("arch", SHARED_MEMORY, ids="sm_{}".format)
def test_mix(arch, fresh_cache) -> None:
    for config in {mix_config(576), mix_config(97920)}:
        types = dict.fromkeys(("table", "alpha", "z"), "*fp32")
        constants = {"BLOCK_R": config.block_r}
        binary = compiled(_mix_kernel, arch, types, constants, True, num_warps=config.num_warps)
        used = resources(binary, fresh_cache)
        print(f"sm_{arch} {config}: {used}")
        assert used["STACK"] == used["LOCAL"] == 0


@pytest.mark.parametrize("format", ["int8", "int4", "fp8"])
def test_quantised_weights_stay_small_until_they_are_in_registers(format, fresh_cache) -> None:
    """On Hopper the left operand comes from registers, and the pipeline's copies are of quantised bytes."""
    weights = WEIGHTS[format]
    tile = tile_config(16, 576, weights.dtype, weights.scales, DEVICES[90], True)
    types = {"x": "*bf16", "y": "*bf16", "w": weights.data, "w_scale": "*fp32"}
    constants = of_tile(tile, weights, "whole") | {"SCALE": "one", "SKIP_BASE": False, "HAS_BIAS": False}
    constants |= {"parts": 1} | dict.fromkeys(("bias", "table", "slot", "alpha"))
    binary = compiled(_product_kernel, 90, types, constants, True, **launched(tile))
    assert re.search(r"wgmma\.mma_async\S+\s+\{[^}]*\},\s*\{", binary.asm["ptx"])
    assert "fma.rn.bf16x2" in binary.asm["ptx"]
    byte = tile.block_m * tile.block_n // (2 if format == "int4" else 1)
    assert binary.metadata.shared <= tile.num_stages * (byte + 2 * tile.block_t * tile.block_n)


def test_the_order_of_a_sum_does_not_depend_on_the_tokens() -> None:
    for weights, device in product(WEIGHTS.values(), DEVICES.values()):
        for out_features, in_features in product(OUT_FEATURES, (576, 4096, 14336)):
            part = parts_config(out_features, in_features, device)
            configs = {
                tile_config(t, out_features, weights.dtype, weights.scales, device, True) for t in TOKENS
            }
            deltas = {
                delta_tile_config(t, out_features, weights.dtype, weights.scales, device, True)
                for t in TOKENS
            }
            assert len(configs) > 1
            assert len({config.block_n for config in configs}) == 1
            assert len({config.block_n for config in deltas}) == 1
            assert all(part % config.block_n == 0 for config in configs | deltas)


def test_parts_fill_a_large_chip_and_are_not_too_short() -> None:
    device = DEVICES[90]
    assert parts_config(4096, 4096, device) == 1024
    assert parts_config(14336, 4096, device) == 4096
    assert parts_config(1024, 4096, device) == 256
    assert parts_config(576, 1536, device) == 256
    assert parts_config(64, 1, device) == 128
    assert parts_config(64, 0, device) == 128
