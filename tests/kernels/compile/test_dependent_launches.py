"""Kernels that are launched as dependent ones, compiled ahead of time: what stands before they wait.

All kernels that `compiled` makes for sm_90 and newer keep the rule of ptx.py; here are those that read weights.
"""

from itertools import product

import pytest

from zweave.kernels.triton.gemm_config import paired_tile_config, tile_config

from .compiled import DEVICES, check_resources
from .gemm_kernels import WEIGHTS, delta_gemm_kernel, gemm_kernel, silu_gemm_kernel
from .ptx import check_dependent_launch, check_handover

pytest.importorskip("triton")

# A program of the next kernel starts beside one of this only if an SM has room for both.
SHARED_BYTES = 110 * 1024


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        pytest.param(
            *target,
            id="sm_{}-{}".format(*target),
            marks=() if target == (90, "bf16") else pytest.mark.exhaustive,
        )
        for target in product((90, 100, 120), WEIGHTS)
    ],
)
def test_products_prefetch_weights_before_they_wait(arch, name, tmp_path) -> None:
    w = WEIGHTS[name]
    tile = tile_config(16, 576, w.dtype, w.scales, DEVICES[arch], True)
    binaries = [
        gemm_kernel(arch, True, tile, w, plan, by_slot, pdl=True)
        for plan, by_slot in (("parallel", True), ("serial", False))
    ]
    if w.kind == "plain":
        pair = paired_tile_config(16, 576, w.dtype, DEVICES[arch], True)
        binaries.append(silu_gemm_kernel(arch, True, pair, w, "parallel", False, pdl=True))
        for factored in (False, True):
            options = {"pdl": True, "factored": factored}
            binaries.append(delta_gemm_kernel(arch, True, tile, w, w, groups=3, **options))
            binaries.append(delta_gemm_kernel(arch, True, pair, w, w, groups=2, silu=True, **options))
    for binary in binaries:
        used = check_resources(binary, arch, tmp_path, f"dependent {name}")
        assert used["SHARED"] <= SHARED_BYTES
        before, _, after = binary.asm["ptx"].partition("griddepcontrol.wait")
        assert "prefetch.global.L2" in before and "prefetch.global.L2" not in after


KERNEL = """
.visible .entry kernel(.param .u64 kernel_param_0)
{
	.reg .b32 %r<9>;
	ld.param.b64 %rd1, [kernel_param_0]; // ld.global
	{
.reg .pred wanted;
@wanted prefetch.global.L2 [%rd1];
}
	griddepcontrol.launch_dependents ;
	griddepcontrol.wait ;
	@%p2 bra $L__BB0_2;
	mbarrier.init.shared::cta.b64 [%r1], 1;
$L__BB0_1:
	@%p1 ld.global.b32 { %r1 }, [ %rd1 + 0 ];
	@%p3 bra $L__BB0_1;
	st.global.b32 [%rd1], %r1;
$L__BB0_2:
	ret;
$L__func_end0:
}
"""
WAIT, LAUNCH = "griddepcontrol.wait ;", "griddepcontrol.launch_dependents ;"
MISTAKES = {
    "store": (WAIT, f"st.global.b32 [%rd1], %r1; {WAIT}"),
    "atomic": (LAUNCH, f"{LAUNCH} atom.global.gpu.acq_rel.add.u32 %r1, [%rd1], 1;"),
    "load under a guard": (WAIT, f"@%p1 ld.global.b32 %r1, [%rd1]; {WAIT}"),
    "asynchronous copy": (WAIT, f"cp.async.cg.shared.global [%r1], [%rd1], 0x10; {WAIT}"),
    "load of no space": (WAIT, f"ld.b32 %r1, [%rd1]; {WAIT}"),
    "no wait": (WAIT, ""),
    "a wait under a guard": (WAIT, f"@%p1 {WAIT}"),
    "an end without a wait": (WAIT, f"@%p1 bra $L__BB0_2; {WAIT}"),
    "a wait in a loop": ("$L__BB0_1:", f"$L__BB0_1: {WAIT}"),
    "a wait on one of two ways": (WAIT, f"@%p1 bra $L__BB0_1; {WAIT}"),
    "no launch": (LAUNCH, ""),
    "a late launch": (f"{LAUNCH}\n\t{WAIT}", f"{WAIT} {LAUNCH}"),
    "tensor memory after the launch": (
        WAIT,
        f"@%p1 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r41], 32; {WAIT}",
    ),
}


def test_a_kernel_that_keeps_the_rule() -> None:
    check_dependent_launch(KERNEL)


@pytest.mark.parametrize(("right", "wrong"), MISTAKES.values(), ids=MISTAKES)
def test_planted_mistakes_are_found(right: str, wrong: str) -> None:
    assert KERNEL.count(right) == 1
    with pytest.raises(AssertionError):
        check_dependent_launch(KERNEL.replace(right, wrong))


SAID = "bar.sync 0; @%p1 red.global.gpu.release.add.u32 [%rd2], %r1;"
ASKED = "$L__BB0_3: @%p1 ld.global.gpu.relaxed.b32 %r1, [%rd2]; bar.sync 0; @%p2 bra $L__BB0_3;"
TAKEN = "@%p1 atom.global.gpu.acquire.add.u32 %r1, [%rd2], 1; bar.sync 0;"
HANDOVER = f"""
.visible .entry kernel(.param .u64 kernel_param_0)
{{
	@%p4 bra $L__BB0_2;
	st.global.b32 [%rd1], %r1;
	{SAID}
	ret;
$L__BB0_2:
	{ASKED}
	{TAKEN}
	ld.global.b32 %r1, [%rd1];
	ret;
$L__func_end0:
}}
"""
HANDOVER_MISTAKES = {
    "said too early": (SAID, SAID.removeprefix("bar.sync 0;")),
    "said by a relaxed sum": (SAID, SAID.replace("release", "relaxed")),
    "not asked": (ASKED, ""),
    "not taken": (TAKEN, ""),
    "read too early": (TAKEN, TAKEN.removesuffix("bar.sync 0;")),
    "read before it is taken": (TAKEN, f"ld.global.b32 %r1, [%rd1]; {TAKEN}"),
    "read past": ("ld.global.b32", "ld.global.nc.b32"),
}


def test_a_handover_that_keeps_the_rule() -> None:
    check_handover(HANDOVER)


@pytest.mark.parametrize(("right", "wrong"), HANDOVER_MISTAKES.values(), ids=HANDOVER_MISTAKES)
def test_planted_mistakes_of_a_handover_are_found(right: str, wrong: str) -> None:
    assert HANDOVER.count(right) == 1
    with pytest.raises(AssertionError):
        check_handover(HANDOVER.replace(right, wrong))
