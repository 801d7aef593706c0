"""The GEMM's tiles, compiled ahead of time for every architecture: instructions, registers, spills, shared memory."""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.kernels.grid_values import _grid_values_kernel
from zweave.kernels.layout.grid_panels import GPU_PANEL
from zweave.kernels.triton.gemm_config import Scales, paired_tile_config, tile_config

from .compiled import DEVICES, SHARED_MEMORY, check_resources, compiled
from .gemm_kernels import (
    GRIDS,
    OUT_FEATURES,
    TOKENS,
    WEIGHTS,
    Weights,
    by_size,
    delta_gemm_kernel,
    gemm_kernel,
    silu_gemm_kernel,
)

pytest.importorskip("triton")

INSTRUCTION = dict.fromkeys(SHARED_MEMORY, "mma.sync") | {90: "wgmma.mma_async", 100: "tcgen05.mma"}


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


def check(binary: Any, arch: int, dtype: torch.dtype, folder: Path, name: str) -> None:
    """Checks what a GEMM takes, and that it multiplies by one kind of instruction."""
    check_resources(binary, arch, folder, name)
    # Another kind of instruction might sum in another order.
    ptx = binary.asm["ptx"]
    assert ("fma.rn.f32" if dtype == torch.float32 else INSTRUCTION[arch]) in ptx
    wanted = None if dtype == torch.float32 else INSTRUCTION[arch]
    assert not any(other in ptx for other in INSTRUCTION.values() if other != wanted)


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
        binary = gemm_kernel(arch, aligned, tile, weights, plan, by_slot, splits=splits)
        check(binary, arch, weights.dtype, tmp_path, f"{weights.kind} {tile} {plan}")


@TARGETS
def test_tiles_of_the_gemm_with_a_delta(arch, aligned, weights, extent, tmp_path) -> None:
    dense = next(w for w in WEIGHTS.values() if w.kind == "plain" and w.dtype == weights.dtype)
    scales: Scales = "group" if weights.scales == "group" else "none"
    tiles = by_size(
        tile_config(t, m, weights.dtype, scales, DEVICES[arch], aligned)
        for t, m in product(TOKENS, OUT_FEATURES)
    )
    cases = tiles if extent == "all" else [tiles[0], tiles[-1]]
    for tile in cases:
        binary = delta_gemm_kernel(arch, aligned, tile, dense, weights)
        check(binary, arch, weights.dtype, tmp_path, f"delta {weights.kind} {tile}")


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
    for tile, factored in product((tiles[0], tiles[-1]), (False, True)):
        binary = delta_gemm_kernel(arch, aligned, tile, w, w, groups=3, factored=factored)
        check(binary, arch, w.dtype, tmp_path, f"groups {name} {tile}")
        if aligned:
            # The choice of a pointer leaves it aligned.
            assert re.search(r"cp\.async\S* \[[^]]*\], \[[^]]*\], 0x10", binary.asm["ptx"])


@pytest.mark.parametrize(
    ("arch", "aligned"),
    [
        pytest.param(
            *target,
            id="sm_{}-{}".format(target[0], "aligned" if target[1] else "odd"),
            marks=() if target == (90, True) else pytest.mark.exhaustive,
        )
        for target in product(SHARED_MEMORY, (True, False))
    ],
)
def test_tiles_of_three_groups_with_integer_deltas(arch, aligned, tmp_path) -> None:
    device, dense, integers = DEVICES[arch], WEIGHTS["bf16"], WEIGHTS["int8"]
    sizes = list(product(TOKENS, OUT_FEATURES))
    tiles = by_size(tile_config(t, m, dense.dtype, "none", device, aligned) for t, m in sizes)
    for tile in (tiles[0], tiles[-1]):
        binary = delta_gemm_kernel(arch, aligned, tile, dense, integers, groups=3)
        check(binary, arch, dense.dtype, tmp_path, f"groups delta int8 {tile}")


@GROUPED
def test_tiles_of_the_gated_gemm(arch, aligned, name, tmp_path) -> None:
    w = WEIGHTS[name]
    tiles = by_size(
        paired_tile_config(t, m, w.dtype, DEVICES[arch], aligned) for t, m in product(TOKENS, OUT_FEATURES)
    )
    for tile, plan, shared in ((tiles[0], "parallel", False), (tiles[-1], "serial", True)):
        binary = silu_gemm_kernel(arch, aligned, tile, w, plan, shared)
        check(binary, arch, w.dtype, tmp_path, f"gated {name} {tile} {plan}")
        for factored in (False, True):
            binary = delta_gemm_kernel(arch, aligned, tile, w, w, groups=2, silu=True, factored=factored)
            check(binary, arch, w.dtype, tmp_path, f"gated delta {name} {tile}")


def grid_targets() -> Iterator[Any]:
    """Architecture, alignment and grid."""
    for arch, aligned, name in product(SHARED_MEMORY, (True, False), GRIDS):
        on_every_run = (arch, aligned, name) in {(80, True, "Q4_1"), (90, True, "Q4_1")}
        marks = pytest.mark.slow if on_every_run else pytest.mark.exhaustive
        rows = "aligned" if aligned else "odd"
        yield pytest.param(arch, aligned, GRIDS[name], id=f"sm_{arch}-{rows}-{name}", marks=marks)


@pytest.mark.parametrize(("arch", "aligned", "weights"), list(grid_targets()))
def test_tiles_of_products_with_grids(arch, aligned, weights, tmp_path) -> None:
    """The plain product, deltas of integers beside a grid, and factors on grids."""
    tiles = by_size(
        tile_config(t, m, weights.dtype, "grid", DEVICES[arch], aligned)
        for t, m in product(TOKENS, OUT_FEATURES)
    )
    integers = Weights(**vars(WEIGHTS["int8"]) | {"dtype": weights.dtype})
    dense = next(w for w in WEIGHTS.values() if w.kind == "plain" and w.dtype == weights.dtype)
    small, large = tiles[0], tiles[-1]
    for name, binary in {
        "gemm": gemm_kernel(arch, aligned, small, weights, "parallel", True, groups=3, pdl=arch >= 90),
        "delta": delta_gemm_kernel(arch, aligned, small, weights, integers, groups=3, pdl=arch >= 90),
        "plain delta": delta_gemm_kernel(arch, aligned, large, weights, dense, groups=3),
        "factored": delta_gemm_kernel(arch, aligned, large, weights, weights, groups=3, factored=True),
    }.items():
        check(binary, arch, weights.dtype, tmp_path, f"{weights.kind} {name}")


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_values_of_a_grid(arch, kind, tmp_path) -> None:
    types = {"codes": GRIDS[kind].data, "numbers": "*fp16", "index": "*i64", "y": "*bf16"}
    for index in ({}, {"index": None}):
        constants = {"FORMAT": kind, "BLOCK_M": GPU_PANEL, "STEPS": 4} | index
        binary = compiled(_grid_values_kernel, arch, types, constants, True, num_warps=4)
        check_resources(binary, arch, tmp_path, f"values of {kind}")


@pytest.mark.parametrize("format", ["int8", "int4", "fp8", "Q4_1", "Q8_0"])
def test_quantised_weights_stay_small_until_they_are_in_registers(format) -> None:
    """On Hopper the left operand comes from registers, and the pipeline's copies are of quantised bytes."""
    weights = (WEIGHTS | GRIDS)[format]
    tile = tile_config(16, 576, weights.dtype, weights.scales, DEVICES[90], True)
    binary = gemm_kernel(90, True, tile, weights, "serial", False, splits=1)
    assert re.search(r"wgmma\.mma_async\S+\s+\{[^}]*\},\s*\{", binary.asm["ptx"])
    assert "fma.rn.bf16x2" in binary.asm["ptx"]
    byte = tile.block_m * tile.block_n // (2 if format in ("int4", "Q4_1") else 1)
    assert binary.metadata.shared <= tile.num_stages * (byte + 2 * tile.block_t * tile.block_n)
