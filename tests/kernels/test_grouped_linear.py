"""Grouped products: references against float64, and the launches in Triton's interpreter and on a GPU."""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from zweave.kernels.grouped_linear import (
    grouped_delta_linear_ref,
    grouped_delta_linear_triton,
    grouped_factored_linear_ref,
    grouped_factored_linear_triton,
    grouped_linear_ref,
    grouped_linear_triton,
)
from zweave.kernels.layout.quantize import Format, quantize
from zweave.kernels.linear import linear_triton
from zweave.kernels.triton.checks import Factor, plain

from .interpreter import cut

FLOATS = {"bf16": torch.bfloat16, "f32": torch.float32}
# T, N, M of each group, K of each group. A tile has 64 outputs, a split 256 inputs or more.
SHAPES = {
    "three groups": (3, 70, (65, 1, 33), (5, 1, 40)),
    "splits in parallel": (3, 768, (40, 16), (17, 48)),
    "aligned": (18, 64, (64, 16), (16, 16)),
    "empty": (0, 24, (8, 8), (4, 4)),
}
PAIRS = {
    "odd": (17, 33, (70, 70), (40, 5)),
    "splits in parallel": (3, 768, (40, 40), (16, 48)),
    "aligned": (18, 64, (16, 16), (16, 32)),
}


def problem(
    tokens: int, inputs: int, outputs: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype
) -> SimpleNamespace:
    """Random operands with results of size one; three slots. Matrices are views of wider ones, poisoned around."""
    random = torch.Generator().manual_seed(tokens + sum(outputs))
    normal = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731

    def view(rows: int, columns: int) -> Tensor:
        wide = torch.full((rows + 2, columns + 16), float("nan"), dtype=dtype)
        wide[:rows, :columns] = normal(rows, columns) / max(columns, 1) ** 0.5
        return wide[:rows, :columns]

    return SimpleNamespace(
        x=normal(tokens, inputs).to(dtype),
        w=[view(m, inputs) for m in outputs],
        h=normal(tokens, sum(ranks)).to(dtype),
        vt=[view(k, inputs) for k in ranks],
        deltas=torch.rand(3, sum(ranks) + 3, generator=random)[:, : sum(ranks)] + 0.5,
        u=[view(m, k) for m, k in zip(outputs, ranks, strict=True)],
        table=torch.rand(3, sum(outputs), generator=random) + 0.5,
        slot=torch.arange(tokens, dtype=torch.int32) % 3,
        bias=normal(sum(outputs)).to(dtype),
    )


def stacked(x: Tensor, weights: Sequence[Factor], shared: bool) -> Tensor:
    """The products in float64, side by side."""
    y, start = [], 0
    for w in weights:
        end = start + w.shape[1]
        y.append((x if shared else x[:, start:end]).double() @ plain(w).double().T)
        start = end
    return torch.cat(y, 1)


def gated(y: Tensor) -> Tensor:
    half = y.shape[1] // 2
    return y[:, :half] / (1 + torch.exp(-y[:, :half])) * y[:, half:]


def expected(p: SimpleNamespace, shared: bool, silu: bool) -> Tensor:
    x, weights = (p.x, p.w) if shared else (p.h, p.u)
    y = stacked(x, weights, shared) * p.table.double()[p.slot.long()] + p.bias.double()
    return gated(y) if silu else y


def expected_delta(p: SimpleNamespace, silu: bool, to: Callable[..., Tensor]) -> Tensor:
    """to: brings h to x's dtype, as float64."""
    h = to(stacked(p.x, p.vt, True) * p.deltas.double()[p.slot.long()], p.x.dtype)
    y, delta = stacked(p.x, p.w, True), stacked(h, p.u, False)
    y = torch.where((p.slot != 0)[:, None], y + delta, y) + p.bias.double()
    return gated(y) if silu else y


def expected_factored(p: SimpleNamespace, silu: bool, to: Callable[..., Tensor]) -> Tensor:
    """to: brings h to x's dtype, as float64."""
    h = to(stacked(p.x, p.vt, True) * p.deltas.double()[p.slot.long()], p.x.dtype)
    y = stacked(h, p.u, False) + p.bias.double()
    return gated(y) if silu else y


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).double()


def product_of(p: SimpleNamespace, launcher: Callable[..., Tensor], shared: bool, silu: bool) -> tuple:
    x, weights = (p.x, p.w) if shared else (p.h, p.u)
    options = {"shared": shared, "table": p.table, "slot": p.slot, "bias": p.bias, "silu": silu}
    return partial(launcher, **options), x, weights


def delta_of(p: SimpleNamespace, launcher: Callable[..., Tensor], silu: bool) -> tuple:
    return partial(launcher, bias=p.bias, silu=silu), p.x, p.w, p.vt, p.u, p.deltas, p.slot


def factored_of(p: SimpleNamespace, launcher: Callable[..., Tensor], silu: bool) -> tuple:
    return partial(launcher, bias=p.bias, silu=silu), p.x, p.vt, p.u, p.deltas, p.slot


def poison_base(p: SimpleNamespace) -> None:
    """What stands in the table for the base is not looked at."""
    p.deltas[0] = float("nan")


@pytest.mark.parametrize("silu", [False, True], ids=["", "silu"])
@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
def test_references(dtype, silu, tolerance) -> None:
    p = problem(*PAIRS["odd"], dtype)
    for shared in (True, False):
        launch, *operands = product_of(p, grouped_linear_ref, shared, silu)
        torch.testing.assert_close(launch(*operands).double(), expected(p, shared, silu), **tolerance(dtype))
    launch, *operands = factored_of(p, grouped_factored_linear_ref, silu)
    torch.testing.assert_close(
        launch(*operands).double(), expected_factored(p, silu, rounded), **tolerance(dtype)
    )
    poison_base(p)
    launch, *operands = delta_of(p, grouped_delta_linear_ref, silu)
    torch.testing.assert_close(
        launch(*operands).double(), expected_delta(p, silu, rounded), **tolerance(dtype)
    )


@pytest.mark.combinations(shape=SHAPES, dtype=FLOATS, shared={"shared": True, "block diagonal": False})
def test_interpreted_groups(shape, dtype, shared, interpreted, tolerance) -> None:
    p = problem(*shape, dtype)
    y = interpreted(*product_of(p, grouped_linear_triton, shared, False))
    torch.testing.assert_close(y.double(), cut(expected(p, shared, False), dtype), **tolerance(dtype))


@pytest.mark.combinations(shape=PAIRS, dtype=FLOATS, shared={"shared": True, "block diagonal": False})
def test_interpreted_silu_of_two_groups(shape, dtype, shared, interpreted, tolerance) -> None:
    p = problem(*shape, dtype)
    y = interpreted(*product_of(p, grouped_linear_triton, shared, True))
    torch.testing.assert_close(y.double(), cut(expected(p, shared, True), dtype), **tolerance(dtype))


@pytest.mark.combinations(shape=SHAPES, dtype=FLOATS)
def test_interpreted_deltas(shape, dtype, interpreted, tolerance) -> None:
    check_deltas(problem(*shape, dtype), False, interpreted, tolerance(dtype))


@pytest.mark.combinations(shape=PAIRS, dtype=FLOATS)
def test_interpreted_silu_of_two_deltas(shape, dtype, interpreted, tolerance) -> None:
    check_deltas(problem(*shape, dtype), True, interpreted, tolerance(dtype))


@pytest.mark.combinations(shape=SHAPES, dtype=FLOATS)
def test_interpreted_factored(shape, dtype, interpreted, tolerance) -> None:
    check_factored(problem(*shape, dtype), False, interpreted, tolerance(dtype))


@pytest.mark.combinations(shape=PAIRS, dtype=FLOATS)
def test_interpreted_silu_of_two_factored(shape, dtype, interpreted, tolerance) -> None:
    check_factored(problem(*shape, dtype), True, interpreted, tolerance(dtype))


def quantised(p: SimpleNamespace, format: Format) -> SimpleNamespace:
    """The problem with factors in a format of one scale a row, or a group."""
    factors = {
        name: [quantize(part.contiguous(), format) for part in getattr(p, name)] for name in ("vt", "u")
    }
    return SimpleNamespace(**vars(p) | factors)


@pytest.mark.combinations(shape=SHAPES, dtype=FLOATS, format={name: name for name in ("int8", "int4", "fp8")})
def test_interpreted_deltas_of_integers(shape, dtype, format, interpreted, tolerance) -> None:
    check_deltas(quantised(problem(*shape, dtype), format), False, interpreted, tolerance(dtype))


def test_interpreted_delta_of_one_vt_for_all_groups(interpreted) -> None:
    p = problem(3, 64, (70, 16), (5, 40), torch.float32)
    y = interpreted(*delta_of(p, grouped_delta_linear_triton, False))
    p.vt = [torch.cat(p.vt)]
    assert torch.equal(interpreted(*delta_of(p, grouped_delta_linear_triton, False)), y)


@pytest.mark.parametrize("slots", [(0, 1, 2), (0, 0, 0)], ids=["experts", "base"])
def test_interpreted_launch_sums_h_as_a_launch_of_its_own(slots, interpreted) -> None:
    """And leaves all counters of a graph at zero."""
    p = problem(3, 1000, (70, 40), (80, 17), torch.float32)
    p.slot = torch.tensor(slots, dtype=torch.int32)
    p.w, p.bias = [torch.zeros_like(w) for w in p.w], None
    state = "import zweave.kernels.triton.semaphores as s; "
    enter = "s.buffer = s.new_semaphores('cpu'); s.inside = s.for_graph(s.buffer); s.inside.__enter__()"
    leave = "s.inside.__exit__(None, None, None); assert not s.buffer.any(); del s.buffer, s.inside"
    interpreted(exec, state + enter)
    y = interpreted(*delta_of(p, grouped_delta_linear_triton, False))
    interpreted(exec, state + leave)
    h = interpreted(partial(grouped_linear_triton, table=p.deltas, slot=p.slot), p.x, p.vt)
    alone = interpreted(partial(grouped_linear_triton, shared=False), h, p.u)
    assert torch.equal(y, torch.where((p.slot != 0)[:, None], alone, 0.0))


def check_deltas(p: SimpleNamespace, silu: bool, interpreted, tolerance: dict[str, float]) -> None:
    """The values, and in slot 0 the bits of the product without deltas."""
    poison_base(p)
    y = interpreted(*delta_of(p, grouped_delta_linear_triton, silu))
    torch.testing.assert_close(y.double(), cut(expected_delta(p, silu, cut), p.x.dtype), **tolerance)
    dense = interpreted(partial(grouped_linear_triton, bias=p.bias, silu=silu), p.x, p.w)
    assert torch.equal(y[p.slot == 0], dense[p.slot == 0])


def check_factored(p: SimpleNamespace, silu: bool, interpreted, tolerance: dict[str, float]) -> None:
    """The values, and in float32 the bits of two launches; with `silu` these have other tiles."""
    y = interpreted(*factored_of(p, grouped_factored_linear_triton, silu))
    torch.testing.assert_close(y.double(), cut(expected_factored(p, silu, cut), p.x.dtype), **tolerance)
    if not silu and y.dtype == torch.float32:
        h = interpreted(partial(grouped_linear_triton, table=p.deltas, slot=p.slot), p.x, p.vt)
        alone = interpreted(partial(grouped_linear_triton, shared=False, bias=p.bias), h, p.u)
        assert torch.equal(y, alone)


@pytest.mark.parametrize("silu", [False, True], ids=["", "silu"])
def test_interpreted_bits_depend_on_no_plan_and_no_other_row(silu, interpreted, on_few_sms) -> None:
    p = problem(20, 520, (40, 40), (30, 17), torch.float32)
    whole = interpreted(*delta_of(p, grouped_delta_linear_triton, silu))
    assert torch.equal(on_few_sms(*delta_of(p, grouped_delta_linear_triton, silu)), whole)
    p.x[1:] = 3.0
    assert torch.equal(interpreted(*delta_of(p, grouped_delta_linear_triton, silu))[0], whole[0])
    p.slot[0] = 1
    assert not torch.equal(interpreted(*delta_of(p, grouped_delta_linear_triton, silu))[0], whole[0])


@pytest.mark.parametrize("silu", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["", "silu"])
def test_interpreted_bits_of_the_factored_depend_on_no_plan_and_no_other_row(
    silu, interpreted, on_few_sms
) -> None:
    p = problem(3, 48, (40, 40), (528, 16), torch.float32)
    whole = interpreted(*factored_of(p, grouped_factored_linear_triton, silu))
    assert torch.equal(on_few_sms(*factored_of(p, grouped_factored_linear_triton, silu)), whole)
    p.x[1:] = 3.0
    assert torch.equal(interpreted(*factored_of(p, grouped_factored_linear_triton, silu))[0], whole[0])


def test_interpreted_one_group_is_the_plain_linear(interpreted) -> None:
    p = problem(3, 600, (70,), (5,), torch.float32)
    y = interpreted(partial(grouped_linear_triton, bias=p.bias), p.x, p.w)
    assert torch.equal(y, interpreted(linear_triton, p.x, p.w[0], p.bias))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": []}, "weights must be 1 to 3 matrices, not 0"),
        ({"weights": [torch.ones(5, 6)] * 4}, "weights must be 1 to 3 matrices, not 4"),
        ({"weights": [torch.ones(5, 7)]}, r"weights\[0\] must be \[5, 6\]"),
        ({"weights": [torch.ones(6, 5).T]}, r"weights\[0\] must be contiguous in its last dimension"),
        ({"weights": [torch.ones(5, 4)], "shared": False}, "x must have 4 columns, those of weights, not 6"),
        ({"silu": True}, "silu wants two matrices of as many rows"),
        ({"silu": True, "weights": [quantize(torch.ones(4, 6), "int8")] * 2}, "silu wants plain weights"),
        (
            {"weights": [torch.ones(4, 6), quantize(torch.ones(4, 6), "int8")]},
            "weights must all be plain, or all of one format and group",
        ),
        ({"table": torch.ones(2, 10)}, "a table needs slots"),
        ({"bias": torch.ones(5)}, r"bias must be \[10\]"),
    ],
)
def test_launcher_names_the_wrong_argument(change, message, interpreted) -> None:
    arguments = {"x": torch.ones(2, 6), "weights": [torch.ones(4, 6), torch.ones(6, 6)]} | change
    with pytest.raises(ValueError, match=f"grouped_linear: {message}"):
        interpreted(partial(grouped_linear_triton, **arguments))


def to_gpu(p: SimpleNamespace) -> SimpleNamespace:
    move = lambda value: [t.cuda() for t in value] if isinstance(value, list) else value.cuda()  # noqa: E731
    return SimpleNamespace(**{name: move(value) for name, value in vars(p).items()})


@pytest.mark.gpu
@pytest.mark.parametrize("silu", [False, True], ids=["", "silu"])
@pytest.mark.parametrize("dtype", [*FLOATS.values(), torch.float16], ids=[*FLOATS, "f16"])
@pytest.mark.parametrize("tokens", [1, 16, 64, 200])
def test_groups_on_a_gpu(tokens, dtype, silu, tolerance, poisoned_outputs) -> None:
    p = problem(tokens, 1024, (576, 576), (72, 64), dtype)
    poison_base(p)
    on_gpu = to_gpu(p)
    launch, *operands = delta_of(on_gpu, grouped_delta_linear_triton, silu)
    y = launch(*operands)
    torch.testing.assert_close(y.cpu().double(), expected_delta(p, silu, rounded), **tolerance(dtype))
    dense = grouped_linear_triton(on_gpu.x, on_gpu.w, bias=on_gpu.bias, silu=silu)
    assert torch.equal(y[on_gpu.slot == 0], dense[on_gpu.slot == 0])
    assert torch.equal(grouped_linear_triton(on_gpu.x[:1], on_gpu.w, bias=on_gpu.bias, silu=silu), dense[:1])
    p.deltas[0] = on_gpu.deltas[0] = 0.5
    launch, *operands = factored_of(on_gpu, grouped_factored_linear_triton, silu)
    y = launch(*operands)
    torch.testing.assert_close(y.cpu().double(), expected_factored(p, silu, rounded), **tolerance(dtype))
    h = grouped_linear_triton(on_gpu.x, on_gpu.vt, table=on_gpu.deltas, slot=on_gpu.slot)
    assert torch.equal(y, grouped_linear_triton(h, on_gpu.u, shared=False, bias=on_gpu.bias, silu=silu))
