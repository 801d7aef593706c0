"""Products with weights on a grid: a float64 product with the values of the file."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from zweave.kernels import AdaptedLinear, Packed, dequantize, linear, pack, quantize, svf_delta_linear
from zweave.kernels.layout.grid import GRID_FORMS, GROUP, Grid, grid_of, grid_rows, pack_grid

KINDS = ["Q4_0", "Q8_0", "Q4_1", "Q4_K"]


def random_grid(kind: str, M: int, N: int, seed: int = 0) -> Grid:
    draw = torch.Generator().manual_seed(seed)

    def codes(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (M, N), generator=draw, dtype=torch.int8)

    def numbers(dtype: torch.dtype) -> Tensor:
        return (torch.randn(M, N // GROUP, generator=draw) * 0.02).to(dtype)

    if kind == "Q4_0":
        return Grid(codes(-8, 7), numbers(torch.float16), None, 4)
    if kind == "Q8_0":
        return Grid(codes(-128, 127), numbers(torch.float16), None, 8)
    dtype = torch.float16 if kind == "Q4_1" else torch.float32
    return Grid(codes(0, 15), numbers(dtype), numbers(dtype), 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "N"), [(16, 32), (7, 96), (40, 32), (33, 160), (576, 576), (64, 4096)])
def test_agrees_with_float64(M: int, N: int, kind: str, dtype: torch.dtype) -> None:
    grid = random_grid(kind, M, N, seed=M + N)
    weight = pack_grid(grid)
    for tokens in (1, 2, 5, 12, 13, 31, 97):
        x = torch.randn(tokens, N, generator=torch.Generator().manual_seed(tokens)).to(dtype)
        wanted = x.double() @ grid.values().double().T
        bias = torch.randn(M).to(dtype)
        y = linear(x, weight, bias, out_dtype=torch.float32)
        magnitude = (x.double().abs() @ grid.values().double().abs().T).amax()
        # Rows of bfloat16 may be rounded to two bytes.
        limit = 1e-6 if dtype == torch.float32 else 4e-5
        assert (y - wanted - bias.double()).abs().max() < limit * magnitude
        for row in range(0, tokens, 6):
            assert torch.equal(
                linear(x[row : row + 1], weight, bias, out_dtype=torch.float32), y[row : row + 1]
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_extreme_values(kind: str, dtype: torch.dtype) -> None:
    """Groups of zeros, of numbers near the smallest and of large ones, and rows that are not finite beside others."""
    grid = random_grid(kind, 20, 96)
    x = torch.randn(6, 96, generator=torch.Generator().manual_seed(3))
    x[0] = 0
    x[1] *= 1e-36
    x[2, :32] *= 1e30
    x[3, 40], x[4, 95] = float("nan"), float("inf")
    x = x.to(dtype)
    y = linear(x, pack_grid(grid), out_dtype=torch.float32)
    assert (y[0] == 0).all() and (y[1].abs() < 1e-30).all() and not y[3:5].isfinite().any()
    for row in (2, 5):
        magnitude = x[row].double().abs() @ grid.values().double().abs().T
        assert ((y[row] - x[row].double() @ grid.values().double().T).abs() < 4e-5 * magnitude).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_beside_it(kind: str) -> None:
    M, N, K, tokens = 48, 96, 40, 9
    grid = random_grid(kind, M, N)
    draw = torch.Generator().manual_seed(1)
    vt, u = torch.randn(K, N, generator=draw), torch.randn(M, K, generator=draw)
    x, table = torch.randn(tokens, N, generator=draw), torch.randn(3, K, generator=draw)
    slot = torch.arange(tokens, dtype=torch.int32) % 3
    y = svf_delta_linear(x, pack_grid(grid), pack(vt), pack(u), table, slot)
    hidden = x.double() @ vt.double().T * table.double()[slot.long()]
    hidden[slot == 0] = 0
    wanted = x.double() @ grid.values().double().T + hidden @ u.double().T
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("poisoned_outputs")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("on_u", "on_vt"), [("Q8_0", "Q4_0"), ("Q4_0", "Q8_0"), ("Q4_1", "Q4_K")])
@pytest.mark.parametrize(("M", "N", "K"), [(33, 96, 96), (7, 160, 64), (96, 33 * 32, 96), (1, 32, 32)])
def test_factors_on_grids(M: int, N: int, K: int, on_u: str, on_vt: str, dtype: torch.dtype) -> None:
    u, vt = random_grid(on_u, M, K), random_grid(on_vt, K, N, seed=1)
    draw = torch.Generator().manual_seed(2)
    table = torch.randn(4, K, generator=draw)
    factored = AdaptedLinear((M, N), None, pack_grid(vt), pack_grid(u), table, None, None, None)
    for tokens in (1, 3, 13, 40):
        x, slot = (
            torch.randn(tokens, N, generator=draw).to(dtype),
            torch.arange(tokens, dtype=torch.int32) % 4,
        )
        hidden = x.double() @ vt.values().double().T * table.double()[slot.long()]
        wanted = hidden @ u.values().double().T
        magnitude = (hidden.abs() @ u.values().double().abs().T).amax()
        y = factored.native().run(x, slot, False)
        # In bfloat16 what lies between the products is rounded, and so is y.
        limit = 1e-5 if dtype == torch.float32 else 2**-8
        assert (y - wanted).abs().max() < limit * magnitude
        assert torch.equal(factored(x, slot), y)
        for row in range(0, tokens, 5):
            assert torch.equal(factored(x[row : row + 1], slot[row : row + 1]), y[row : row + 1])


@pytest.mark.parametrize(("format", "columns"), [("int4", 96), ("int8", 64)])
def test_integers_lie_on_a_grid_to_the_bit(format: str, columns: int) -> None:
    weight = quantize(torch.randn(20, columns, generator=torch.Generator().manual_seed(0)), format, 32)
    weight = replace(weight, scale=weight.scale.half().float())
    assert torch.equal(grid_of(weight).values(), dequantize(weight))
    for wrong, words in (
        (replace(weight, scale=weight.scale * (1 + 2**-20)), "must be float16 values"),
        (quantize(torch.ones(4, 64), format, 64), "in groups of 64 of 64 inputs lies on no grid"),
        (quantize(torch.ones(4, 33), format, 32), "lies on no grid"),
    ):
        with pytest.raises(ValueError, match=words):
            grid_of(wrong)


@pytest.mark.parametrize("leading", [0, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_integer_deltas_of_some_slots_beside_it(kind: str, leading: int) -> None:
    """What plain values of W give; a batch that needs fewer components does not read the others, to the same bit."""
    M, N, K, tokens, supports = 48, 96, 160, 13, [0, 16, 70, 160]
    grid, draw = random_grid(kind, M, N), torch.Generator().manual_seed(1)
    vt, u = torch.randn(K, N, generator=draw) / 10, torch.randn(M, K, generator=draw) / 10
    delta = torch.randn(4, K, generator=draw)
    for slot, support in enumerate(supports):
        delta[slot, support:] = 0

    def linear_of(dense: Packed) -> AdaptedLinear:
        modes = torch.tensor([0, 1, 1, 1], dtype=torch.uint8)
        counts = torch.tensor(supports, dtype=torch.int32)
        parts = [(pack(quantize(v, f)), pack(quantize(w.contiguous(), f))) for v, w, f in stored]
        rest = parts[1] if leading else None
        return AdaptedLinear((M, N), dense, *parts[0], None, delta, None, modes, counts, rest=rest)

    stored = [(vt[leading:], u[:, leading:], "int4")]
    if leading:
        stored.insert(0, (vt[:leading], u[:, :leading], "int8"))
    on_grid, plain = (linear_of(dense).native() for dense in (pack_grid(grid), pack(grid.values())))
    x = torch.randn(tokens, N, generator=draw)
    slot = torch.arange(tokens, dtype=torch.int32) % 4
    together = on_grid.run(x, slot, False)
    torch.testing.assert_close(together, plain.run(x, slot, False), rtol=1e-5, atol=1e-5)
    values = [(dequantize(quantize(v, f)), dequantize(quantize(w.contiguous(), f))) for v, w, f in stored]
    vt, u = torch.cat([v for v, _ in values]), torch.cat([w for _, w in values], 1)
    change = (x @ vt.T * delta[slot.long()]) @ u.T
    wanted = x @ grid.values().T + change
    # Activations are rounded to bytes.
    assert ((together - wanted).norm(dim=1) <= 0.02 * change.norm(dim=1) + 1e-4).all()
    for one in range(4):
        rows = slot == one
        assert torch.equal(on_grid.run(x[rows], slot[rows], False), together[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_scales_lie_where_the_layout_says(kind: str) -> None:
    grid = random_grid(kind, 20, 96)
    data = pack_grid(grid).data
    assert data.dtype == torch.uint8 and data.shape[0] == 2 and data.shape[3] == 64
    groups = {"Q4_0": 2, "Q8_0": 2, "Q4_1": 1, "Q4_K": 1}[kind]
    assert data.shape[1:3] == (-(-3 // groups), {"Q4_0": 9, "Q8_0": 17, "Q4_1": 5, "Q4_K": 6}[kind])
    assert GRID_FORMS[kind].lines == data.shape[2]
    whole = pack_grid(random_grid(kind, 32, 128))
    assert whole.data.nbytes == GRID_FORMS[kind].bytes * 32 * 128


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "N"), [(1, 32), (20, 96), (40, 64)])
def test_rows_come_back_to_the_bit(M: int, N: int, kind: str) -> None:
    grid = random_grid(kind, M, N)
    packed = pack_grid(grid)
    for rows in (torch.arange(M), torch.tensor([M - 1, 0, M - 1]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(grid_rows(packed, rows), grid.values()[rows])


def test_what_no_kernel_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 32 inputs, not 33"):
        pack_grid(Grid(torch.zeros(4, 33, dtype=torch.int8), torch.zeros(4, 1).half(), None, 4))
    with pytest.raises(ValueError, match=r"no kernel reads a grid of 8 bits with scales of torch\.float32"):
        pack_grid(Grid(torch.zeros(4, 32, dtype=torch.int8), torch.zeros(4, 1), None, 8))
