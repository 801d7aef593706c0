"""The Triton kernels: interpreted on a CPU, compiled ahead of time, and on a GPU where there is one."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from zweave.kernels import mix, svf_linear
from zweave.kernels.mix import _mix_kernel, mix_config, mix_triton
from zweave.kernels.svf_linear import TileConfig, _svf_linear_kernel, svf_linear_triton, tile_config

triton = pytest.importorskip("triton")

Launch = Callable[..., Tensor]
SHAPES = {
    "empty": (0, 24, 40, 24),
    "one token": (1, 576, 192, 192),
    "63 tokens": (63, 100, 33, 33),
    "199 tokens": (199, 63, 199, 63),
    "wide": (5, 1000, 96, 96),
    "deep": (3, 40, 1000, 40),
    "rank below a tile": (17, 130, 70, 5),
}
# Shared memory that one program may use, in bytes (CUDA programming guide, technical specifications).
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
TOKENS = (1, 16, 17, 33, 65, 128, 4096)
OUT_FEATURES = (192, 576, 14336)
# The fast tests make do with Hopper and rows that begin at multiples of 16 values.
COMPILE_CASES = [
    pytest.param(90, True, id="sm_90-aligned"),
    *(
        pytest.param(arch, aligned, id=f"sm_{arch}-{'aligned' if aligned else 'odd'}", marks=pytest.mark.slow)
        for arch, aligned in product(SHARED_MEMORY, (True, False))
        if (arch, aligned) != (90, True)
    ),
]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Launch]:
    """Runs a launcher in a process whose Triton interprets, with outputs that are born as NaN."""
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=torch.use_deterministic_algorithms, initargs=(True,)
    ) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(mix_triton, torch.ones(1, 1), torch.ones(1, 1)).result()
        yield lambda launcher, *arguments: pool.submit(launcher, *arguments).result()


def problem(
    tokens: int, out_features: int, in_features: int, rank: int, dtype: torch.dtype
) -> SimpleNamespace:
    """Random operands of svf_linear with results of size one; three slots."""
    random = torch.Generator().manual_seed(tokens + out_features)
    normal = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    return SimpleNamespace(
        x=normal(tokens, in_features).to(dtype),
        vt=(normal(rank, in_features) / in_features**0.5).to(dtype),
        u=(normal(out_features, rank) / rank**0.5).to(dtype),
        scale=torch.rand(3, rank, generator=random) + 0.5,
        slot=torch.randint(0, 3, (tokens,), generator=random, dtype=torch.int32),
        bias=normal(out_features).to(dtype),
    )


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).double()


def cut(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds as the interpreter does: to bf16 by cutting off the lower half of a float32."""
    if dtype != torch.bfloat16:
        return rounded(value, dtype)
    return (value.float().view(torch.int32) & -(2**16)).view(torch.float32).double()


def expected(p: SimpleNamespace, bias: bool = True, to: Callable[..., Tensor] = rounded) -> Tensor:
    """The float64 result, with the value between the products and the result brought to x's dtype."""
    hidden = to(p.x.double() @ p.vt.double().T * p.scale[p.slot.long()].double(), p.x.dtype)
    return to(hidden @ p.u.double().T + (p.bias.double() if bias else 0), p.x.dtype)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_interpreted_svf_linear(shape, dtype, bias, interpreted, guarded, tolerance) -> None:
    p = problem(*shape, dtype)
    operands = [guarded(t) for t in (p.x, p.vt, p.u, p.scale, p.slot)]
    y = interpreted(svf_linear_triton, *operands, guarded(p.bias) if bias else None)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected(p, bias, cut), **tolerance(dtype))


def test_interpreted_svf_linear_never_reads_a_slot_outside_the_table(interpreted, guarded, tolerance) -> None:
    p = problem(6, 40, 24, 24, torch.float32)
    right = expected(p)
    slot = p.slot.clone()
    slot[[0, 2, 3, 5]] = torch.tensor([-1, 3, 2**31 - 1, -(2**31)], dtype=torch.int32)
    y = interpreted(svf_linear_triton, *map(guarded, (p.x, p.vt, p.u, p.scale, slot, p.bias)))
    assert y[[0, 2, 3, 5]].isnan().all()
    torch.testing.assert_close(y[[1, 4]].double(), right[[1, 4]], **tolerance(torch.float32))


@pytest.mark.parametrize("shape", [(1, 1, 5), (3, 7, 1000), (2, 64, 2500), (0, 3, 8), (2, 0, 8)], ids=str)
def test_interpreted_mix(shape, interpreted, guarded, tolerance) -> None:
    mixtures, experts, rank = shape
    random = torch.Generator().manual_seed(rank)
    table = torch.randn(experts, rank, generator=random)
    alpha = torch.rand(mixtures, experts, generator=random) / max(experts, 1)
    z = interpreted(mix_triton, guarded(table), guarded(alpha))
    torch.testing.assert_close(z.double(), alpha.double() @ table.double(), **tolerance(torch.float32))


def compiled(
    kernel: Any, arch: int, types: dict[str, str], constants: dict[str, object], aligned: bool, **options: int
) -> Any:
    """Compiles a kernel for an architecture. types: by argument; aligned: pointers and strides are by 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    fixed = {"T", "S", "E"} | set(constants)
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if aligned and name not in fixed
    }
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(binary, folder: Path) -> dict[str, int]:
    """Registers, stack, local and shared memory of a compiled kernel, as cuobjdump sees them."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(binary.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listing = subprocess.check_output([tool, "--dump-resource-usage", cubin], text=True)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    return found | {"SHARED": binary.metadata.shared}


def compile_svf_linear(arch: int, dtype: torch.dtype, tile: TileConfig, first: bool, aligned: bool) -> Any:
    """The first product (scale and slot) or the second (bias)."""
    value = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    types = dict.fromkeys(_svf_linear_kernel.arg_names, "i32") | dict.fromkeys(("x", "w", "y", "bias"), value)
    types |= {"scale": "*fp32", "slot": "*i32"}
    constants = dict.fromkeys(("bias",) if first else ("scale", "slot"))
    constants |= {"HAS_SCALE": first, "HAS_BIAS": not first, "UPCAST": False}
    constants |= {"BLOCK_T": tile.block_t, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return compiled(_svf_linear_kernel, arch, types, constants, aligned, **options)


def tiles(dtype: torch.dtype, arch: int, aligned: bool) -> list[TileConfig]:
    """Every tile that the heuristic picks for an architecture."""
    capability = divmod(arch, 10)
    picked = {tile_config(t, m, dtype, capability, aligned) for t in TOKENS for m in OUT_FEATURES}
    return sorted(picked, key=str)


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize(("arch", "aligned"), COMPILE_CASES)
def test_every_tile_compiles_without_spills_to_one_instruction(arch, dtype, aligned, fresh_cache) -> None:
    instruction = INSTRUCTION[arch] if dtype == torch.bfloat16 else "fma.rn.f32"
    for tile in tiles(dtype, arch, aligned):
        for first in (True, False):
            binary = compile_svf_linear(arch, dtype, tile, first, aligned)
            used = resources(binary, fresh_cache)
            print(f"sm_{arch} {dtype} {tile} {'first' if first else 'second'}: {used}")
            assert used["STACK"] == used["LOCAL"] == 0, "spills"
            assert used["SHARED"] <= SHARED_MEMORY[arch]
            # Another kind of instruction might sum in another order.
            ptx = binary.asm["ptx"]
            assert instruction in ptx
            assert not any(other in ptx for other in set(INSTRUCTION.values()) - {instruction})


@pytest.mark.parametrize("arch", SHARED_MEMORY, ids="sm_{}".format)
def test_mix_compiles_without_spills(arch, fresh_cache) -> None:
    for config in {mix_config(576), mix_config(97920)}:
        types = dict.fromkeys(_mix_kernel.arg_names, "i32") | dict.fromkeys(("table", "alpha", "z"), "*fp32")
        constants = {"BLOCK_R": config.block_r}
        binary = compiled(_mix_kernel, arch, types, constants, True, num_warps=config.num_warps)
        used = resources(binary, fresh_cache)
        print(f"sm_{arch} {config}: {used}")
        assert used["STACK"] == used["LOCAL"] == 0


def test_summation_step_depends_on_the_dtype_alone() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        configs = {
            tile_config(tokens, out_features, dtype, capability, aligned)
            for tokens in TOKENS
            for out_features in OUT_FEATURES
            for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))
            for aligned in (True, False)
        }
        assert len(configs) > 1
        assert len({config.block_n for config in configs}) == 1


def test_a_cpu_tensor_without_the_interpreter_is_refused_by_name() -> None:
    p = problem(2, 4, 4, 4, torch.float32)
    with pytest.raises(NotImplementedError, match=r"device cpu.*torch\.float32"):
        svf_linear_triton(p.x, p.vt, p.u, p.scale, p.slot)
    with pytest.raises(NotImplementedError, match="mix: no Triton kernel for device cpu"):
        mix_triton(torch.ones(1, 1), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda t: t.half(), "must be bfloat16 or float32, not torch.float16"),
        ("x", lambda t: t[None], "must be matrices"),
        ("vt", lambda t: t[:-1], r"vt must be \[4, 6\]"),
        ("u", lambda t: t.bfloat16(), r"u must be \[5, 4\] torch.float32"),
        ("scale", lambda t: t.double(), "torch.float32 on cpu, not .* torch.float64"),
        ("slot", lambda t: t.long(), "slot must be .* torch.int32"),
        ("slot", lambda t: t[:-1], r"slot must be \[7\]"),
        ("bias", lambda t: t[:-1], r"bias must be \[5\]"),
        ("vt", lambda t: t.T.contiguous().T, "vt must be contiguous in its last dimension"),
    ],
)
def test_launcher_names_the_wrong_argument(name, change, message, interpreted) -> None:
    p = problem(7, 5, 6, 4, torch.float32)
    setattr(p, name, change(getattr(p, name)))
    with pytest.raises(ValueError, match=message):
        interpreted(svf_linear_triton, p.x, p.vt, p.u, p.scale, p.slot, p.bias)


def test_without_triton_the_cpu_ops_work_and_a_launch_says_what_is_missing() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch
from zweave.kernels import mix
from zweave.kernels.mix import _mix_kernel
print(mix(torch.full((1, 1), 3.0), torch.full((1, 1), 2.0)).item())
try:
    _mix_kernel[(1, 1)]()
except RuntimeError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "6.0",
        "CUDA tensors need Triton, which is not installed: pip install triton",
    ]


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_svf_linear_on_a_gpu(shape, dtype, guarded, tolerance, poisoned_outputs) -> None:
    p = problem(*shape, dtype)
    y = svf_linear(*(guarded(t.cuda()) for t in (p.x, p.vt, p.u, p.scale, p.slot, p.bias)))
    torch.testing.assert_close(y.cpu().double(), expected(p), **tolerance(dtype))


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_row_does_not_depend_on_its_batch_on_a_gpu(dtype) -> None:
    p = problem(1000, 576, 1536, 576, dtype)
    x, vt, u, scale, slot, bias = (t.cuda() for t in (p.x, p.vt, p.u, p.scale, p.slot, p.bias))
    whole = svf_linear(x, vt, u, scale, slot, bias)
    for tokens in (1, 16, 17, 40, 100, 500):
        part = svf_linear(x[:tokens], vt, u, scale, slot[:tokens], bias)
        assert torch.equal(part, whole[:tokens]), tokens


@needs_cuda
def test_slots_outside_the_table_give_nan_on_a_gpu(guarded) -> None:
    p = problem(3, 40, 24, 24, torch.float32)
    slot = torch.tensor([-1, 0, 3], dtype=torch.int32)
    y = svf_linear(*(guarded(t.cuda()) for t in (p.x, p.vt, p.u, p.scale, slot)))
    assert y[[0, 2]].isnan().all() and not y[1].isnan().any()


@needs_cuda
def test_mix_on_a_gpu(guarded, tolerance) -> None:
    random = torch.Generator().manual_seed(0)
    table, alpha = torch.randn(9, 2500, generator=random), torch.rand(4, 9, generator=random)
    z = mix(guarded(table.cuda()), guarded(alpha.cuda()))
    torch.testing.assert_close(z.cpu().double(), alpha.double() @ table.double(), **tolerance(torch.float32))
    assert torch.equal(mix(table.cuda(), alpha[2:3].cuda()), z[2:3])
