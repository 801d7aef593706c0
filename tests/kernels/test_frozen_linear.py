"""frozen_linear: its values and gradients against float64 autograd, and rows that do not know each other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zweave.kernels.train.frozen_linear import FrozenWeight, frozen_linear, frozen_linear_ref

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
# T, M, N
SHAPES = {
    "no token": (0, 8, 6),
    "one token": (1, 9, 7),
    "63 tokens": (63, 20, 33),
    "199 tokens": (199, 33, 18),
}


def operands(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, and the weights of the sum whose gradient is asked."""
    T, M, N = shape
    random = torch.Generator().manual_seed(T + M)
    sizes = ((T, N), (M, N), (M,), (T, M))
    x, weight, bias, target = (torch.randn(size, generator=random) / size[-1] ** 0.5 for size in sizes)
    return x.to(dtype), weight.to(dtype), bias.to(dtype), target.to(dtype)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_float64(
    shape: tuple[int, int, int], dtype: torch.dtype, tolerance: Callable[[torch.dtype], dict[str, float]]
) -> None:
    x, weight, bias, target = operands(shape, dtype)
    exact, found = x.double().requires_grad_(), x.clone().requires_grad_()
    expected = frozen_linear_ref(exact, weight.double(), bias.double())
    y = frozen_linear(found, FrozenWeight.of(weight), bias)
    torch.testing.assert_close(y.double(), expected, **tolerance(dtype))
    (expected_grad,) = torch.autograd.grad(expected, exact, target.double())
    (grad,) = torch.autograd.grad(y, found, target)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.double(), expected_grad, **tolerance(dtype))


@DTYPES
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    x, weight, bias, target = operands((199, 33, 18), dtype)
    packed, whole = FrozenWeight.of(weight), x.requires_grad_()
    y = frozen_linear(whole, packed, bias)
    (grad,) = torch.autograd.grad(y, whole, target)
    for rows in (slice(0, 1), slice(1, 64), slice(64, 199)):
        alone = x[rows].detach().requires_grad_()
        own = frozen_linear(alone, packed, bias)
        torch.testing.assert_close(own, y[rows], rtol=0, atol=0)
        torch.testing.assert_close(
            torch.autograd.grad(own, alone, target[rows])[0], grad[rows], rtol=0, atol=0
        )
