"""rms_norm and add_rms_norm on a CPU."""

import pytest
import torch
from torch import Tensor

from zweave.kernels import add_rms_norm, add_rms_norm_ref, rms_norm, rms_norm_ref

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
# T, N
SHAPES = [(0, 8), (1, 1), (1, 576), (3, 63), (63, 199), (5, 1000), (70, 16), (4, 0)]
EPS = 1e-5


def operands(tokens: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, a float32 residual and a float32 weight."""
    random = torch.Generator().manual_seed(tokens + width)
    x, residual = 3 * torch.randn(2, tokens, width, generator=random)
    return x.to(dtype), residual, torch.rand(width, generator=random) + 0.5


def exact(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


@DTYPES
@pytest.mark.parametrize("wide_weight", [True, False], ids=["weight f32", "weight as x"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, wide_weight, dtype, tolerance, poisoned_outputs) -> None:
    x, residual, weight = operands(*shape, dtype)
    weight = weight if wide_weight else weight.to(dtype)
    torch.testing.assert_close(rms_norm(x, weight, EPS).double(), exact(x, weight), **tolerance(dtype))
    total = x.float() + residual
    y = add_rms_norm(x, residual, weight, EPS)
    assert y.dtype == dtype
    assert torch.equal(residual, total)
    torch.testing.assert_close(y.double(), exact(total, weight), **tolerance(dtype))


@DTYPES
def test_references(dtype, tolerance) -> None:
    x, residual, weight = operands(7, 99, dtype)
    torch.testing.assert_close(rms_norm_ref(x, weight, EPS).double(), exact(x, weight), **tolerance(dtype))
    before = residual.clone()
    y = add_rms_norm_ref(x, residual, weight, EPS)
    assert torch.equal(residual, before + x)
    torch.testing.assert_close(y.double(), exact(residual, weight), **tolerance(dtype))


@DTYPES
def test_nothing_around_the_operands_is_touched(dtype, guarded, tolerance) -> None:
    x, residual, weight = operands(9, 77, dtype)
    amid = guarded(residual)
    around = amid._base
    y = add_rms_norm(guarded(x), amid, guarded(weight), EPS)
    torch.testing.assert_close(y.double(), exact((x + residual), weight), **tolerance(dtype))
    assert around.isnan().sum() == around.numel() - residual.numel()


@DTYPES
def test_a_row_has_the_same_bits_in_every_batch(dtype, threads) -> None:
    x, residual, weight = operands(65, 576, dtype)
    threads(2)
    whole = rms_norm(x, weight, EPS)
    threads(1)
    assert all(torch.equal(rms_norm(x[t : t + 1], weight, EPS), whole[t : t + 1]) for t in range(65))
    stream = residual.clone()
    whole = add_rms_norm(x, stream, weight, EPS)
    for t in range(65):
        row = residual[t : t + 1].clone()
        assert torch.equal(add_rms_norm(x[t : t + 1], row, weight, EPS), whole[t : t + 1])
        assert torch.equal(row, stream[t : t + 1])


def test_a_row_of_zeros_gives_zeros() -> None:
    assert torch.equal(rms_norm(torch.zeros(2, 33), torch.ones(33), 1e-6), torch.zeros(2, 33))


X, R, W = operands(4, 24, torch.float32)
WRONG = {
    "x is a cube": (X[None], R, W),
    "widths differ": (X, R, W[:-1]),
    "rows differ": (X, R[:-1], W),
    "residual of another dtype": (X, R.bfloat16(), W),
    "weight of another dtype": (X, R, W.bfloat16()),
    "x is float64": (X.double(), R.double(), W),
    "x is transposed": (X.T.contiguous().T, R, W),
    "rows of the residual overlap": (X, R[:1].expand(4, 24), W),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_operands_are_refused_in_one_line(wrong) -> None:
    with pytest.raises(RuntimeError, match=r"^add_rms_norm: "):
        add_rms_norm(*wrong, EPS)
