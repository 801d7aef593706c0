"""svf_linear_train: its values, and its gradients against float64 finite differences."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from zweave.kernels import pack, svf_linear
from zweave.kernels.train.svf_linear_train import TrainingFactors, svf_linear_train, svf_linear_train_ref

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
FORMS = pytest.mark.parametrize("delta", [False, True], ids=["factored", "delta"])
Tolerance = Callable[[torch.dtype], dict[str, float]]
# T, M, N, R, S
SHAPES = {
    "one token": (1, 9, 7, 7, 1),
    "all ones": (1, 1, 1, 1, 1),
    "63 tokens": (63, 20, 33, 20, 1),
    "199 tokens": (199, 33, 18, 18, 1),
    "three slots": (40, 31, 17, 17, 3),
    "a slot without tokens": (5, 12, 12, 5, 9),
    "1000 inputs": (3, 10, 1000, 10, 2),
}
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@dataclass(frozen=True)
class Problem:
    """Operands, and the weights of the sum whose gradient is asked."""

    x: Tensor
    vt: Tensor
    u: Tensor
    scale: Tensor
    slot: Tensor
    bias: Tensor
    weight: Tensor | None
    target: Tensor

    def factors(self) -> TrainingFactors:
        return TrainingFactors.of(self.vt, self.u, self.weight)

    def objective(self, x: Tensor, scale: Tensor) -> Tensor:
        """The sum in float64."""
        double = [part.double() for part in (self.vt, self.u)]
        weight = None if self.weight is None else self.weight.double()
        y = svf_linear_train_ref(x, *double, scale, self.slot, self.bias.double(), weight)
        return (y * self.target.double()).sum()

    def gradients(self) -> tuple[Tensor, Tensor]:
        x, scale = self.x.clone().requires_grad_(), self.scale.clone().requires_grad_()
        y = svf_linear_train(x, self.factors(), scale, self.slot, self.bias)
        grads = torch.autograd.grad(y, (x, scale), self.target)
        return grads[0], grads[1]


def problem(shape: tuple[int, int, int, int, int], dtype: torch.dtype, delta: bool) -> Problem:
    T, M, N, R, S = shape
    random = torch.Generator().manual_seed(100 * T + M)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    return Problem(
        x=draw(T, N).to(dtype),
        vt=(draw(R, N) / N**0.5).to(dtype),
        u=(draw(M, R) / R**0.5).to(dtype),
        scale=torch.rand(S, R, generator=random) + 0.5,
        slot=torch.randint(0, min(S, 3), (T,), generator=random, dtype=torch.int32),
        bias=draw(M).to(dtype),
        weight=(draw(M, N) / N**0.5).to(dtype) if delta else None,
        target=(draw(T, M) / M**0.5).to(dtype),
    )


def central_differences(function: Callable[[Tensor], Tensor], at: Tensor, places: Tensor) -> Tensor:
    """Slopes of a function along single elements of its float64 argument."""
    step, slopes = 1e-5, []
    for place in places.tolist():
        moved = at.flatten().clone()
        moved[place] += step
        above = function(moved.view_as(at))
        moved[place] -= 2 * step
        slopes.append((above - function(moved.view_as(at))) / (2 * step))
    return torch.stack(slopes)


@FORMS
@EVERY_SHAPE
def test_gradients_are_the_float64_finite_differences(
    shape: tuple[int, int, int, int, int], delta: bool
) -> None:
    case = problem(shape, torch.float32, delta)
    x, scale = case.x.double(), case.scale.double()
    for found, function, at in (
        (case.gradients()[0], lambda moved: case.objective(moved, scale), x),
        (case.gradients()[1], lambda moved: case.objective(x, moved), scale),
    ):
        places = torch.randperm(at.numel(), generator=torch.Generator().manual_seed(0))[:60]
        expected = central_differences(function, at, places)
        torch.testing.assert_close(found.flatten()[places].double(), expected, rtol=1e-4, atol=1e-4)


@DTYPES
@FORMS
@EVERY_SHAPE
def test_gradients_are_those_of_float64_autograd(
    shape: tuple[int, int, int, int, int], delta: bool, dtype: torch.dtype, tolerance: Tolerance
) -> None:
    case = problem(shape, dtype, delta)
    x, scale = case.x.double().requires_grad_(), case.scale.double().requires_grad_()
    expected = torch.autograd.grad(case.objective(x, scale), (x, scale))
    rtol, atol = tolerance(dtype).values()
    found = case.gradients()
    assert found[0].dtype == dtype and found[1].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), expected[0], rtol=rtol, atol=atol)
    # Summed in float32 of operands that are rounded once at most.
    torch.testing.assert_close(found[1].double(), expected[1], rtol=max(rtol, 1e-4), atol=max(atol, 1e-4))


@DTYPES
@EVERY_SHAPE
def test_values_are_the_bits_of_svf_linear(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    case = problem(shape, dtype, False)
    y = svf_linear_train(case.x, case.factors(), case.scale, case.slot, case.bias)
    served = svf_linear(case.x, pack(case.vt), pack(case.u), case.scale, case.slot, case.bias)
    torch.testing.assert_close(y, served, rtol=0, atol=0)


@DTYPES
def test_a_delta_is_added_to_the_weights_and_rounded_once(dtype: torch.dtype, tolerance: Tolerance) -> None:
    case = problem((21, 33, 40, 4, 1), dtype, True)
    y = svf_linear_train(case.x, case.factors(), case.scale, bias=case.bias)
    hidden = ((case.x.double() @ case.vt.double().T) * case.scale.double()).to(dtype).double()
    expected = hidden @ case.u.double().T + case.x.double() @ case.weight.double().T + case.bias.double()
    torch.testing.assert_close(y.double(), expected, **tolerance(dtype))


def test_a_slot_learns_from_its_own_tokens_alone() -> None:
    case = problem((40, 31, 17, 17, 3), torch.float32, False)
    whole = case.gradients()[1]
    for slot in range(3):
        mine = case.slot == slot
        scale = case.scale[slot : slot + 1].clone().requires_grad_()
        y = svf_linear_train(case.x[mine], case.factors(), scale)
        (alone,) = torch.autograd.grad(y, scale, case.target[mine])
        torch.testing.assert_close(whole[slot : slot + 1], alone)


@DTYPES
@FORMS
def test_slots_that_lie_together_have_the_bits_that_each_has_alone(delta: bool, dtype: torch.dtype) -> None:
    case = problem((199, 33, 40, 18, 3), dtype, delta)
    factors, lengths = case.factors(), (20, 0, 179)
    x, scale = case.x.clone().requires_grad_(), case.scale.clone().requires_grad_()
    y = svf_linear_train(x, factors, scale, bias=case.bias, lengths=lengths)
    grads = torch.autograd.grad(y, (x, scale), case.target)
    parts = zip(*(part.split(lengths) for part in (case.x, y, grads[0], case.target)), strict=True)
    for slot, (own_x, own_y, own_grad, target) in enumerate(parts):
        alone, row = own_x.clone().requires_grad_(), case.scale[slot : slot + 1].clone().requires_grad_()
        found = svf_linear_train(alone, factors, row, bias=case.bias)
        expected = torch.autograd.grad(found, (alone, row), target)
        for one, other in ((own_y, found), (own_grad, expected[0]), (grads[1][slot : slot + 1], expected[1])):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@DTYPES
def test_the_same_batch_gives_the_same_bits(dtype: torch.dtype) -> None:
    case = problem((199, 33, 18, 18, 1), dtype, False)
    for one, other in zip(case.gradients(), case.gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_no_tokens_give_no_gradient() -> None:
    case = problem((0, 8, 6, 6, 2), torch.float32, False)
    grad_x, grad_scale = case.gradients()
    assert grad_x.shape == (0, 6) and (grad_scale == 0).all()


def test_what_does_not_fit_is_refused() -> None:
    case = problem((4, 8, 6, 6, 2), torch.float32, False)
    factors = case.factors()
    with pytest.raises(ValueError, match="do not fit"):
        svf_linear_train(case.x[:, 1:], factors, case.scale, case.slot)
    with pytest.raises(ValueError, match="do not fit"):
        svf_linear_train(case.x, factors, case.scale.double(), case.slot)
    with pytest.raises(ValueError, match="2 slots"):
        svf_linear_train(case.x, factors, case.scale)
    with pytest.raises(ValueError, match="not one for each"):
        svf_linear_train(case.x, factors, case.scale, case.slot[1:])
    for wrong in ((4,), (3, 2), (1, 1, 2)):
        with pytest.raises(ValueError, match="4 tokens among 2 slots"):
            svf_linear_train(case.x, factors, case.scale, lengths=wrong)
    with pytest.raises(ValueError, match="frozen"):
        svf_linear_train(case.x, factors, case.scale, case.slot, case.bias.clone().requires_grad_())
