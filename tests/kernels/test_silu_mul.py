"""silu_mul on a CPU."""

import pytest
import torch
from torch import Tensor

from zweave.kernels import silu_mul, silu_mul_ref

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
SHAPES = [(0, 8), (1, 1), (1, 1536), (3, 63), (63, 199), (5, 1000), (4, 0)]


def operands(tokens: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """gate and up as the halves of one product, as a fused gate-up linear leaves them."""
    random = torch.Generator().manual_seed(tokens + width)
    gate, up = (2 * torch.randn(tokens, 2 * width, generator=random)).to(dtype).tensor_split(2, 1)
    return gate, up


def exact(gate: Tensor, up: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate.double()) * up.double()


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, dtype, tolerance, poisoned_outputs) -> None:
    gate, up = operands(*shape, dtype)
    y = silu_mul(gate, up)
    assert y.dtype == dtype and y.is_contiguous()
    torch.testing.assert_close(y.double(), exact(gate, up), **tolerance(dtype))
    torch.testing.assert_close(silu_mul_ref(gate, up).double(), exact(gate, up), **tolerance(dtype))


def test_exponential_is_exact_to_two_units_in_the_last_place() -> None:
    gate = torch.linspace(-87, 87, 100_003)[None]
    right = torch.nn.functional.silu(gate.double())
    error = (silu_mul(gate, torch.ones_like(gate)).double() - right).abs() / right.abs().clamp_min(1e-300)
    # Exponential, sum, quotient: half a unit each for the latter two.
    assert error[gate != 0].max() < 4 * 2.0**-24


def test_extreme_gates() -> None:
    gate = torch.tensor(
        [[float("inf"), -float("inf"), 1e30, -1e30, -88.5, -103.0, 0.0, -0.0, float("nan"), 90.0]]
    )
    y = silu_mul(gate, torch.ones_like(gate))[0]
    assert y[0] == float("inf") and y[2] == 1e30 and y[9] == 90
    assert y[1].isnan() and y[8].isnan()  # -inf * 0, as in PyTorch
    assert y[[3, 6, 7]].eq(0).all() and y[4:6].abs().max() < 1e-35


@DTYPES
def test_nothing_around_the_operands_is_read(dtype, guarded, tolerance) -> None:
    gate, up = operands(9, 77, dtype)
    torch.testing.assert_close(
        silu_mul(guarded(gate), guarded(up)).double(), exact(gate, up), **tolerance(dtype)
    )


@DTYPES
def test_an_element_has_the_same_bits_wherever_it_stands(dtype, threads) -> None:
    gate, up = operands(65, 333, dtype)
    threads(2)
    whole = silu_mul(gate, up)
    threads(1)
    assert all(torch.equal(silu_mul(gate[t : t + 1], up[t : t + 1]), whole[t : t + 1]) for t in range(65))
    assert torch.equal(silu_mul(gate[:, 5:44], up[:, 5:44]), whole[:, 5:44])


G, U = operands(4, 24, torch.float32)
WRONG = {
    "a vector": (G[0], U[0]),
    "shapes differ": (G, U[:, :-1]),
    "dtypes differ": (G, U.bfloat16()),
    "float64": (G.double(), U.double()),
    "transposed": (G.T.contiguous().T, U),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_operands_are_refused_in_one_line(wrong) -> None:
    with pytest.raises(RuntimeError, match=r"^silu_mul: "):
        silu_mul(*wrong)
