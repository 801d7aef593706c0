"""Products with weights on a grid in Triton: its interpreter, against float64 products of the values of the file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from zweave.kernels import quantize
from zweave.kernels.grid_values import grid_values_ref, grid_values_triton
from zweave.kernels.grouped_linear import (
    grouped_delta_linear_ref,
    grouped_delta_linear_triton,
    grouped_factored_linear_ref,
    grouped_factored_linear_triton,
    grouped_linear_ref,
    grouped_linear_triton,
)
from zweave.kernels.layout.grid import GROUP, Grid
from zweave.kernels.layout.grid_panels import GridPanels
from zweave.kernels.linear import linear_ref, linear_triton
from zweave.kernels.triton.checks import Factor, plain

from .interpreter import cut

pytest.importorskip("triton")

KINDS = {name: name for name in ("Q4_1", "Q4_0", "Q8_0", "Q4_K")}
FLOATS = {"bf16": torch.bfloat16, "f32": torch.float32}
# T, M, N: a panel has 64 outputs, a step 64 inputs, a split 256 inputs or more.
SHAPES = {
    "an odd group": (3, 70, 96),
    "splits in parallel": (5, 40, 800),
    "one group": (1, 1, 32),
    "63 tokens": (63, 130, 64),
    "empty": (0, 8, 32),
}


def random_grid(kind: str, M: int, N: int, seed: int = 0) -> Grid:
    """Values of size one over the root of N."""
    random = torch.Generator().manual_seed(seed + M + N)
    size, number = N**-0.5, torch.float32 if kind == "Q4_K" else torch.float16
    bits, low = (8, -128) if kind == "Q8_0" else (4, -8 if kind == "Q4_0" else 0)
    codes = torch.randint(low, low + 2**bits, (M, N), generator=random, dtype=torch.int8)
    scale = (torch.rand(M, N // GROUP, generator=random) + 0.5) * size / 2 ** (bits - 2)
    minimum = (
        None if kind in ("Q4_0", "Q8_0") else (torch.randn(scale.shape, generator=random) * size).to(number)
    )
    return Grid(codes, scale.to(number), minimum, bits)


def fenced(grid: GridPanels) -> GridPanels:
    """A copy whose codes and numbers lie in the middle of poison, each in one piece."""

    def fence(tensor: Tensor, poison: float) -> Tensor:
        around = torch.full((tensor.numel() + 128,), poison).to(tensor.dtype)
        around[64:-64] = tensor.flatten()
        return around[64:-64].view(tensor.shape)

    return replace(grid, codes=fence(grid.codes, 99), numbers=fence(grid.numbers, float("nan")))


def panels(kind: str, M: int, N: int, seed: int = 0) -> GridPanels:
    return fenced(GridPanels.of(random_grid(kind, M, N, seed)))


def problem(
    kinds: Sequence[str], tokens: int, inputs: int, outputs: Sequence[int], rank: int, dtype: torch.dtype
) -> SimpleNamespace:
    """Operands of a delta of integers beside grids, and of factors on grids. kinds: of w, of vt, of u."""
    random = torch.Generator().manual_seed(tokens + inputs)
    normal = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    of_w, of_vt, of_u = kinds
    return SimpleNamespace(
        x=normal(tokens, inputs).to(dtype),
        w=[panels(of_w, m, inputs, i) for i, m in enumerate(outputs)],
        vt=[quantize(normal(rank, inputs) / inputs**0.5, "int8") for _ in outputs],
        u=[quantize(normal(m, rank) / rank**0.5, "int8") for m in outputs],
        grid_vt=[panels(of_vt, rank, inputs, 3 + i) for i, _ in enumerate(outputs)],
        grid_u=[panels(of_u, m, rank, 6 + i) for i, m in enumerate(outputs)],
        table=torch.rand(3, rank * len(outputs), generator=random) + 0.5,
        slot=torch.arange(tokens, dtype=torch.int32) % 3,
        bias=normal(sum(outputs)).to(dtype),
    )


def stacked(x: Tensor, weights: Sequence[Factor], shared: bool = True) -> Tensor:
    """The products in float64, side by side."""
    parts = [x] * len(weights) if shared else x.split([w.shape[1] for w in weights], 1)
    return torch.cat([part.double() @ plain(w).double().T for part, w in zip(parts, weights, strict=True)], 1)


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).double()


def expected_delta(p: SimpleNamespace, to: Callable[..., Tensor]) -> Tensor:
    h = to(stacked(p.x, p.vt) * p.table.double()[p.slot.long()], p.x.dtype)
    y = stacked(p.x, p.w)
    return torch.where((p.slot != 0)[:, None], y + stacked(h, p.u, False), y) + p.bias.double()


def expected_factored(p: SimpleNamespace, to: Callable[..., Tensor]) -> Tensor:
    h = to(stacked(p.x, p.grid_vt) * p.table.double()[p.slot.long()], p.x.dtype)
    return stacked(h, p.grid_u, False) + p.bias.double()


def delta_of(p: SimpleNamespace, launcher: Callable[..., Tensor]) -> tuple:
    return partial(launcher, bias=p.bias), p.x, p.w, p.vt, p.u, p.table, p.slot


def factored_of(p: SimpleNamespace, launcher: Callable[..., Tensor]) -> tuple:
    return partial(launcher, bias=p.bias), p.x, p.grid_vt, p.grid_u, p.table, p.slot


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "N"), [(1, 32), (70, 96), (130, 128)])
def test_values_are_the_files_to_the_bit(kind, M, N, interpreted) -> None:
    grid = random_grid(kind, M, N)
    found = panels(kind, M, N)
    assert torch.equal(found.values(), grid.values())
    index = torch.tensor([M - 1, 0, M // 2])
    assert torch.equal(found.rows(index), grid.values()[index])
    for write in (grid_values_ref, partial(interpreted, grid_values_triton)):
        for dtype, rows in ((torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, index)):
            wanted = grid.values() if rows is None else grid.values()[rows]
            wide = torch.full((len(wanted), N + 3), float("nan"), dtype=dtype).share_memory_()
            write(wide[:, :N], found, rows)
            wanted = cut(wanted, dtype) if isinstance(write, partial) else rounded(wanted, dtype)
            assert torch.equal(wide[:, :N].double(), wanted) and wide[:, N:].isnan().all()


@pytest.mark.combinations(shape=SHAPES, kind=KINDS, dtype=FLOATS)
def test_interpreted_linear(shape, kind, dtype, interpreted, guarded, tolerance) -> None:
    T, M, N = shape
    x = torch.randn(T, N, generator=torch.Generator().manual_seed(T)).to(dtype)
    bias = torch.randn(M, generator=torch.Generator().manual_seed(M)).to(dtype)
    weight = panels(kind, M, N)
    y = interpreted(partial(linear_triton, out_dtype=torch.float32), guarded(x), weight, guarded(bias))
    wanted = x.double() @ weight.values().double().T + bias.double()
    # Nothing is rounded but sums, whatever the dtype of x.
    torch.testing.assert_close(y.double(), wanted, **tolerance(torch.float32))
    torch.testing.assert_close(
        linear_ref(x, weight, bias, out_dtype=torch.float32).double(), wanted, **tolerance(torch.float32)
    )


@pytest.mark.combinations(kind=KINDS, dtype=FLOATS, integers={"int8": True, "plain": False})
def test_interpreted_groups_and_deltas_beside_them(kind, dtype, integers, interpreted, tolerance) -> None:
    p = problem((kind, kind, kind), 3, 96, (70, 33), 32, dtype)
    if not integers:
        p.vt, p.u = ([plain(part).to(dtype) for part in parts] for parts in (p.vt, p.u))
    p.table[0] = float("nan")
    y = interpreted(*delta_of(p, grouped_delta_linear_triton))
    torch.testing.assert_close(y.double(), cut(expected_delta(p, cut), dtype), **tolerance(dtype))
    dense = interpreted(partial(grouped_linear_triton, bias=p.bias), p.x, p.w)
    assert torch.equal(y[p.slot == 0], dense[p.slot == 0])
    wanted = stacked(p.x, p.w) + p.bias.double()
    torch.testing.assert_close(dense.double(), cut(wanted, dtype), **tolerance(dtype))
    launch, *operands = delta_of(p, grouped_delta_linear_ref)
    torch.testing.assert_close(launch(*operands).double(), expected_delta(p, rounded), **tolerance(dtype))
    reference = grouped_linear_ref(p.x, p.w, bias=p.bias)
    torch.testing.assert_close(reference.double(), wanted, **tolerance(dtype))


@pytest.mark.combinations(
    kinds={"int4, int8": ("Q4_0", "Q8_0"), "int8, int4": ("Q8_0", "Q4_0"), "int8, int8": ("Q8_0", "Q8_0")},
    dtype=FLOATS,
)
def test_interpreted_factors_on_grids(kinds, dtype, interpreted, tolerance) -> None:
    p = problem(("Q8_0", *kinds), 3, 96, (70, 33), 96, dtype)
    y = interpreted(*factored_of(p, grouped_factored_linear_triton))
    torch.testing.assert_close(y.double(), cut(expected_factored(p, cut), dtype), **tolerance(dtype))
    launch, *operands = factored_of(p, grouped_factored_linear_ref)
    torch.testing.assert_close(launch(*operands).double(), expected_factored(p, rounded), **tolerance(dtype))


@pytest.mark.slow
def test_interpreted_bits_depend_on_no_plan_and_no_other_row(interpreted, on_few_sms) -> None:
    p = problem(("Q4_1", "Q8_0", "Q8_0"), 20, 544, (40, 1, 40), 32, torch.float32)
    for case in (
        delta_of(p, grouped_delta_linear_triton),
        factored_of(p, grouped_factored_linear_triton),
        (grouped_linear_triton, p.x, p.w),
    ):
        whole = interpreted(*case)
        assert torch.equal(on_few_sms(*case), whole)
        x = torch.cat([p.x[:1], torch.full_like(p.x[1:], 3.0)])
        assert torch.equal(interpreted(case[0], x, *case[2:])[0], whole[0])


def test_weights_of_two_kinds_are_refused(interpreted) -> None:
    x = torch.ones(2, 32)
    grids = [panels(kind, 4, 32) for kind in ("Q4_1", "Q4_0", "Q4_K")]
    for other in (torch.ones(4, 32), *grids[1:]):
        with pytest.raises(ValueError, match="weights must all be plain, or all of one format and group"):
            interpreted(grouped_linear_triton, x, [grids[0], other])
    p = problem(("Q4_1", "Q8_0", "Q8_0"), 2, 32, (4, 4), 32, torch.float32)
    p.grid_u[1] = panels("Q4_0", 4, 32)
    with pytest.raises(ValueError, match="u must all be plain, or all of one format and group"):
        interpreted(*factored_of(p, grouped_factored_linear_triton))
    with pytest.raises(ValueError, match="silu wants plain weights"):
        interpreted(partial(grouped_linear_triton, silu=True), x, grids[:1] * 2)
    with pytest.raises(ValueError, match=r"weights\[0\] must be \[4, 64\]"):
        interpreted(grouped_linear_triton, torch.ones(2, 64), grids[:1])


def to_gpu(value: object) -> object:
    if isinstance(value, list):
        return [to_gpu(each) for each in value]
    if isinstance(value, GridPanels):
        return replace(value, codes=value.codes.cuda(), numbers=value.numbers.cuda())
    return value.to("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*FLOATS.values(), torch.float16], ids=[*FLOATS, "f16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 16, 64, 128])
def test_products_on_a_gpu(tokens, kind, dtype, tolerance, poisoned_outputs) -> None:
    p = problem((kind, "Q4_0", "Q8_0"), tokens, 1056, (576, 70), 64, dtype)
    on_gpu = SimpleNamespace(**{name: to_gpu(value) for name, value in vars(p).items()})
    launch, *operands = delta_of(on_gpu, grouped_delta_linear_triton)
    y = launch(*operands)
    torch.testing.assert_close(y.cpu().double(), expected_delta(p, rounded), **tolerance(dtype))
    dense = grouped_linear_triton(on_gpu.x, on_gpu.w, bias=on_gpu.bias)
    assert torch.equal(y[on_gpu.slot == 0], dense[on_gpu.slot == 0])
    assert torch.equal(grouped_linear_triton(on_gpu.x[:1], on_gpu.w, bias=on_gpu.bias), dense[:1])
    launch, *operands = factored_of(on_gpu, grouped_factored_linear_triton)
    torch.testing.assert_close(
        launch(*operands).cpu().double(), expected_factored(p, rounded), **tolerance(dtype)
    )
    values = torch.empty(576, 1056, dtype=torch.float32, device="cuda")
    grid_values_triton(values, on_gpu.w[0])
    assert torch.equal(values.cpu(), p.w[0].values())
