"""The Triton kernels: interpreted on a CPU, and on a GPU where there is one. See also compile/test_gemm.py."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from zweave.kernels import mix, svf_linear
from zweave.kernels.layout.quantize import Quantized, quantize
from zweave.kernels.linear import linear_triton
from zweave.kernels.mix import mix_triton
from zweave.kernels.svf_delta_linear import svf_delta_linear_ref, svf_delta_linear_triton
from zweave.kernels.svf_linear import svf_linear_ref, svf_linear_triton
from zweave.kernels.triton.checks import plain

from .interpreter import cut

pytest.importorskip("triton")

# T, M, N, R
SHAPES = {
    "1000 inputs, splits in parallel": (3, 40, 1000, 40),
    "empty": (0, 24, 40, 24),
    "one token": (1, 192, 96, 96),
    "63 tokens": (63, 100, 33, 33),
    "199 tokens": (199, 63, 199, 63),
    "1000 outputs": (5, 1000, 96, 96),
    "rank below a tile": (17, 130, 70, 5),
}
FEW = {name: SHAPES[name] for name in list(SHAPES)[:4]}
FLOATS = {"bf16": torch.bfloat16, "f32": torch.float32, "f16": torch.float16}
QUANTISED = {name: name for name in ("int8", "int8 groups", "int4", "fp8")}
FORMATS = pytest.mark.parametrize("format", [None, *QUANTISED])
DTYPES = pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)


def problem(
    tokens: int,
    out_features: int,
    in_features: int,
    rank: int,
    dtype: torch.dtype,
    format: str | None = None,
) -> SimpleNamespace:
    """Random operands of the linears with results of size one; three slots."""
    random = torch.Generator().manual_seed(tokens + out_features)
    normal = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    p = SimpleNamespace(
        x=normal(tokens, in_features).to(dtype),
        w=(normal(out_features, in_features) / in_features**0.5).to(dtype),
        vt=(normal(rank, in_features) / in_features**0.5).to(dtype),
        u=(normal(out_features, rank) / rank**0.5).to(dtype),
        scale=torch.rand(3, rank, generator=random) + 0.5,
        slot=torch.randint(0, 3, (tokens,), generator=random, dtype=torch.int32),
        bias=normal(out_features).to(dtype),
    )
    if format is not None:
        group = 64 if format == "int8 groups" else None
        p.vt, p.u = (quantize(weight, format.split()[0], group) for weight in (p.vt, p.u))
    return p


def fenced(weight: Quantized) -> Quantized:
    """A copy whose values and scales lie in the middle of poison, each in one piece."""

    def fence(tensor: Tensor, poison: float) -> Tensor:
        around = torch.full((tensor.numel() + 64,), poison).to(tensor.dtype)
        around[32:-32] = tensor.flatten()
        return around[32:-32].view(tensor.shape)

    nan = float("nan")
    data = fence(weight.data, nan if weight.format == "fp8" else 99)
    return Quantized(data, fence(weight.scale, nan), weight.shape, weight.format, weight.group)


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).double()


def expected(p: SimpleNamespace, bias: bool = True, to: Callable[..., Tensor] = rounded) -> Tensor:
    """svf_linear in float64, with the value between the products brought to x's dtype; see `through_factors`."""
    return through_factors(p, p.scale[p.slot.long()], p.bias.double() if bias else 0, to)


def through_factors(
    p: SimpleNamespace, scale: Tensor, rest: Tensor | float, to: Callable[..., Tensor] = rounded
) -> Tensor:
    """u @ (scale * (vt @ x)) + rest in float64. Of the result only what the interpreter cuts off is cut off."""
    hidden = to(p.x.double() @ plain(p.vt).double().T * scale.double(), p.x.dtype)
    return result(hidden @ plain(p.u).double().T + rest, p.x.dtype, to)


def result(value: Tensor, dtype: torch.dtype, to: Callable[..., Tensor]) -> Tensor:
    # Not rounded: beside a right result that rounds the other way it would be a unit in the last place off.
    return cut(value, dtype) if to is cut else value


def expected_delta(p: SimpleNamespace, to: Callable[..., Tensor] = rounded) -> Tensor:
    """svf_delta_linear in float64; `scale` is the delta, whose row 0 is not looked at."""
    dense = p.x.double() @ p.w.double().T + p.bias.double()
    adapted = through_factors(p, p.scale[p.slot.long()], dense, to)
    return torch.where((p.slot != 0)[:, None], adapted, result(dense, p.x.dtype, to))


@pytest.fixture
def guard(guarded) -> Callable[..., list[Tensor | Quantized]]:
    return lambda *operands: [fenced(t) if isinstance(t, Quantized) else guarded(t) for t in operands]


@pytest.mark.combinations(shape=SHAPES, dtype=FLOATS, bias={"bias": True, "no bias": False})
def test_interpreted_svf_linear(shape, dtype, bias, interpreted, guard, tolerance) -> None:
    p = problem(*shape, dtype)
    y = interpreted(svf_linear_triton, *guard(p.x, p.vt, p.u, p.scale, p.slot, *([p.bias] if bias else [])))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected(p, bias, cut), **tolerance(dtype))


@pytest.mark.combinations(shape=FEW, dtype=FLOATS, format=QUANTISED)
def test_interpreted_svf_linear_with_quantised_factors(
    shape, dtype, format, interpreted, guard, tolerance
) -> None:
    p = problem(*shape, dtype, format)
    y = interpreted(svf_linear_triton, *guard(p.x, p.vt, p.u, p.scale, p.slot, p.bias))
    torch.testing.assert_close(y.double(), expected(p, True, cut), **tolerance(dtype))


@pytest.mark.combinations(shape=SHAPES, dtype=FLOATS)
def test_interpreted_delta(shape, dtype, interpreted, guard, tolerance) -> None:
    p = problem(*shape, dtype)
    p.scale[0] = float("nan")
    y = interpreted(svf_delta_linear_triton, *guard(p.x, p.w, p.vt, p.u, p.scale, p.slot, p.bias))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected_delta(p, cut), **tolerance(dtype))


@pytest.mark.combinations(shape=FEW, dtype=FLOATS, format=QUANTISED)
def test_interpreted_delta_with_quantised_factors(
    shape, dtype, format, interpreted, guard, tolerance
) -> None:
    p = problem(*shape, dtype, format)
    p.scale[0] = float("nan")
    y = interpreted(svf_delta_linear_triton, *guard(p.x, p.w, p.vt, p.u, p.scale, p.slot, p.bias))
    torch.testing.assert_close(y.double(), expected_delta(p, cut), **tolerance(dtype))


@pytest.mark.combinations(
    shape={"splits": (3, 40, 1000, 40), "one split": (3, 130, 64, 64)},
    slots={"base beside another": (0, 2, 0), "base alone": (0, 0, 0)},
    dtype=FLOATS,
)
def test_interpreted_slot_0_is_the_dense_product_to_the_bit(shape, slots, dtype, interpreted) -> None:
    p = problem(*shape, dtype)
    p.scale[0] = float("nan")
    slot = torch.tensor(slots, dtype=torch.int32)
    y = interpreted(svf_delta_linear_triton, p.x, p.w, p.vt, p.u, p.scale, slot, p.bias)
    dense = interpreted(linear_triton, p.x, p.w, p.bias)
    assert torch.equal(y[slot == 0].view(torch.uint8), dense[slot == 0].view(torch.uint8))
    assert not torch.equal(y[slot != 0], dense[slot != 0]) or not any(slots)


@FORMATS
def test_interpreted_delta_of_no_components_is_the_dense_product(format, interpreted) -> None:
    p = problem(3, 40, 24, 0, torch.float32)
    if format:
        p.vt, p.u = quantize(p.vt, format.split()[0]), quantize(torch.empty(40, 0), format.split()[0])
    y = interpreted(svf_delta_linear_triton, p.x, p.w, p.vt, p.u, p.scale, p.slot, p.bias)
    assert torch.equal(y, interpreted(linear_triton, p.x, p.w, p.bias))


def test_interpreted_delta_never_reads_a_slot_outside_the_table(interpreted, guard, tolerance) -> None:
    p = problem(6, 40, 24, 24, torch.float32)
    right = expected_delta(p)
    slot = p.slot.clone()
    slot[[0, 2, 3, 5]] = torch.tensor([-1, 3, 2**31 - 1, -(2**31)], dtype=torch.int32)
    y = interpreted(svf_delta_linear_triton, *guard(p.x, p.w, p.vt, p.u, p.scale, slot, p.bias))
    assert y[[0, 2, 3, 5]].isnan().all()
    torch.testing.assert_close(y[[1, 4]].double(), right[[1, 4]], **tolerance(torch.float32))


@pytest.mark.combinations(shape=SHAPES, dtype=FLOATS, out_dtype={"x's dtype": None, "f32 out": torch.float32})
def test_interpreted_linear(shape, dtype, out_dtype, interpreted, guard, tolerance) -> None:
    p = problem(*shape, dtype)
    y = interpreted(partial(linear_triton, out_dtype=out_dtype), *guard(p.x, p.w, p.bias))
    wanted = p.x.double() @ p.w.double().T + p.bias.double()
    assert y.dtype == (out_dtype or dtype)
    torch.testing.assert_close(y.double(), cut(wanted, y.dtype), **tolerance(y.dtype))


@pytest.mark.exhaustive
def test_interpreted_4096_tokens(interpreted, guard, tolerance) -> None:
    p = problem(4096, 17, 40, 8, torch.bfloat16)
    y = interpreted(svf_linear_triton, *guard(p.x, p.vt, p.u, p.scale, p.slot, p.bias))
    torch.testing.assert_close(y.double(), expected(p, True, cut), **tolerance(torch.bfloat16))
    y = interpreted(svf_delta_linear_triton, *guard(p.x, p.w, p.vt, p.u, p.scale, p.slot, p.bias))
    torch.testing.assert_close(y.double(), expected_delta(p, cut), **tolerance(torch.bfloat16))


@DTYPES
def test_interpreted_serial_splits_give_the_bits_of_parallel_ones(
    dtype, interpreted, on_few_sms, guard, tolerance
) -> None:
    p = problem(70, 40, 1000, 60, dtype)
    serial = on_few_sms(svf_delta_linear_triton, *guard(p.x, p.w, p.vt, p.u, p.scale, p.slot, p.bias))
    torch.testing.assert_close(serial.double(), expected_delta(p, cut), **tolerance(dtype))
    parallel = interpreted(svf_delta_linear_triton, p.x, p.w, p.vt, p.u, p.scale, p.slot, p.bias)
    assert torch.equal(serial, parallel)
    serial = on_few_sms(linear_triton, *guard(p.x, p.w, p.bias))
    assert torch.equal(serial, interpreted(linear_triton, p.x, p.w, p.bias))


@FORMATS
@DTYPES
def test_references(dtype, format, tolerance) -> None:
    p = problem(17, 130, 70, 5, dtype, format)
    as_is = lambda value, dtype: value  # noqa: E731
    y = svf_linear_ref(p.x, p.vt, p.u, p.scale, p.slot, p.bias)
    torch.testing.assert_close(y.double(), expected(p, True, as_is), **tolerance(dtype))
    y = svf_delta_linear_ref(p.x, p.w, p.vt, p.u, p.scale, p.slot, p.bias)
    torch.testing.assert_close(y.double(), expected_delta(p, as_is), **tolerance(dtype))


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


def test_a_cpu_tensor_without_the_interpreter_is_refused_by_name() -> None:
    p = problem(2, 4, 4, 4, torch.float32)
    with pytest.raises(NotImplementedError, match=r"device cpu.*torch\.float32"):
        svf_linear_triton(p.x, p.vt, p.u, p.scale, p.slot)
    with pytest.raises(NotImplementedError, match="mix: no Triton kernel for device cpu"):
        mix_triton(torch.ones(1, 1), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda t: t.double(), "must be bfloat16, float16 or float32, not torch.float64"),
        ("x", lambda t: t[None], "x must be a matrix"),
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


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("w", lambda t: t[:-1], r"svf_delta_linear: w must be \[5, 6\]"),
        ("w", lambda t: t.half(), "w must be .* torch.float32"),
        (
            "u",
            lambda t: quantize(t, "int8", 32),
            "u has groups of 32 inputs, the kernels want one scale a row or groups",
        ),
        ("vt", lambda t: quantize(t[:-1], "int4"), r"vt must be \[40, 6\] on cpu, not \[39, 6\]"),
        ("u", lambda t: t[0], "u must be a matrix"),
        ("slot", lambda t: t.long(), "slot must be .* torch.int32"),
    ],
)
def test_delta_launcher_names_the_wrong_argument(name, change, message, interpreted) -> None:
    p = problem(7, 5, 6, 40, torch.float32)
    setattr(p, name, change(getattr(p, name)))
    with pytest.raises(ValueError, match=message):
        interpreted(svf_delta_linear_triton, p.x, p.w, p.vt, p.u, p.scale, p.slot, p.bias)


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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_svf_linear_on_a_gpu(shape, dtype, guarded, tolerance, poisoned_outputs) -> None:
    p = problem(*shape, dtype)
    y = svf_linear(*(guarded(t.cuda()) for t in (p.x, p.vt, p.u, p.scale, p.slot, p.bias)))
    torch.testing.assert_close(y.cpu().double(), expected(p), **tolerance(dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_row_does_not_depend_on_its_batch_on_a_gpu(dtype) -> None:
    p = problem(1000, 576, 1536, 576, dtype)
    x, vt, u, scale, slot, bias = (t.cuda() for t in (p.x, p.vt, p.u, p.scale, p.slot, p.bias))
    whole = svf_linear(x, vt, u, scale, slot, bias)
    for tokens in (1, 16, 17, 40, 100, 500):
        part = svf_linear(x[:tokens], vt, u, scale, slot[:tokens], bias)
        assert torch.equal(part, whole[:tokens]), tokens


@pytest.mark.gpu
def test_slots_outside_the_table_give_nan_on_a_gpu(guarded) -> None:
    p = problem(3, 40, 24, 24, torch.float32)
    slot = torch.tensor([-1, 0, 3], dtype=torch.int32)
    y = svf_linear(*(guarded(t.cuda()) for t in (p.x, p.vt, p.u, p.scale, slot)))
    assert y[[0, 2]].isnan().all() and not y[1].isnan().any()


@pytest.mark.gpu
def test_mix_on_a_gpu(guarded, tolerance) -> None:
    random = torch.Generator().manual_seed(0)
    table, alpha = torch.randn(9, 2500, generator=random), torch.rand(4, 9, generator=random)
    z = mix(guarded(table.cuda()), guarded(alpha.cuda()))
    torch.testing.assert_close(z.cpu().double(), alpha.double() @ table.double(), **tolerance(torch.float32))
    assert torch.equal(mix(table.cuda(), alpha[2:3].cuda()), z[2:3])


def on_gpu(*operands: Tensor | Quantized) -> list[Tensor | Quantized]:
    return [operand.to("cuda") for operand in operands]


@pytest.mark.gpu
@FORMATS
@DTYPES
@pytest.mark.parametrize("shape", [*SHAPES.values(), (40, 1536, 576, 576), (4096, 512, 1024, 128)], ids=str)
def test_factors_of_every_format_on_a_gpu(shape, dtype, format, tolerance, poisoned_outputs) -> None:
    p = problem(*shape, dtype, format)
    y = svf_linear_triton(*on_gpu(p.x, p.vt, p.u, p.scale, p.slot, p.bias))
    torch.testing.assert_close(y.cpu().double(), expected(p), **tolerance(dtype))


@pytest.mark.gpu
@FORMATS
@DTYPES
@pytest.mark.parametrize("shape", [*SHAPES.values(), (40, 1536, 576, 576), (4096, 512, 1024, 128)], ids=str)
def test_delta_on_a_gpu(shape, dtype, format, tolerance, poisoned_outputs) -> None:
    p = problem(*shape, dtype, format)
    p.scale[0] = float("nan")
    x, w, vt, u, delta, slot, bias = on_gpu(p.x, p.w, p.vt, p.u, p.scale, p.slot, p.bias)
    y = svf_delta_linear_triton(x, w, vt, u, delta, slot, bias)
    torch.testing.assert_close(y.cpu().double(), expected_delta(p), **tolerance(dtype))
    assert torch.equal(y[slot == 0], linear_triton(x, w, bias)[slot == 0])


@pytest.mark.gpu
@FORMATS
def test_no_row_of_any_format_depends_on_its_batch_on_a_gpu(format) -> None:
    p = problem(1000, 576, 1536, 256, torch.bfloat16, format)
    x, w, vt, u, delta, slot, bias = on_gpu(p.x, p.w, p.vt, p.u, p.scale, p.slot, p.bias)
    factored = svf_linear_triton(x, vt, u, delta, slot, bias)
    added = svf_delta_linear_triton(x, w, vt, u, delta, slot, bias)
    for tokens in (1, 16, 17, 40, 65, 100, 500):
        part = slice(0, tokens)
        assert torch.equal(svf_linear_triton(x[part], vt, u, delta, slot[part], bias), factored[part]), tokens
        alone = svf_delta_linear_triton(x[part], w, vt, u, delta, slot[part], bias)
        assert torch.equal(alone, added[part]), tokens


@pytest.mark.gpu
def test_a_captured_graph_replays_beside_eager_launches_on_a_gpu() -> None:
    p = problem(4, 576, 4096, 576, torch.bfloat16)
    operands = on_gpu(p.x, p.w, p.vt, p.u, p.scale, p.slot, p.bias)
    wanted = svf_delta_linear_triton(*operands)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = svf_delta_linear_triton(*operands)
    side = torch.cuda.Stream()
    for _ in range(50):
        with torch.cuda.stream(side):
            graph.replay()
        assert torch.equal(svf_delta_linear_triton(*operands), wanted)
    torch.cuda.synchronize()
    assert torch.equal(y, wanted)
