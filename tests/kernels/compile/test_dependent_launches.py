"""Kernels that are launched as dependent ones, compiled ahead of time: what stands before they wait."""

import re
from itertools import product

import pytest

from zweave.kernels.triton.gemm_config import paired_tile_config, tile_config

from .compiled import DEVICES, FEW_WORDS, check_resources
from .gemm_kernels import WEIGHTS, gemm_kernel, silu_gemm_kernel

pytest.importorskip("triton")

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
        check_resources(binary, arch, tmp_path, f"dependent {name}", FEW_WORDS)
        before, wait, after = binary.asm["ptx"].partition("griddepcontrol.wait")
        assert wait and "griddepcontrol.launch_dependents" in before and "prefetch.global.L2" in before
        assert not re.search(r"\b(ld|st|atom|red|ldu|cp\.async\S*)\.global|cp\.async|\b(atom|red)\.", before)
        assert "st.global" in after
