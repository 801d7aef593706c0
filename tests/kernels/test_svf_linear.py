"""svf_linear on a CPU: values, independence of the batch, gradients and refusals."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from zweave.kernels import Packed, pack, svf_linear, svf_linear_ref

FLOATS = {"bf16": torch.bfloat16, "f32": torch.float32}
DTYPES = pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
ORDERS = {"packed": True, "plain": False}
WEIGHTS = pytest.mark.parametrize("packed", ORDERS.values(), ids=ORDERS)
# T, M, N, R
SHAPES = {
    "1000 inputs": (7, 40, 1000, 40),
    "empty": (0, 64, 96, 64),
    "one token": (1, 576, 192, 192),
    "63 tokens": (63, 100, 33, 33),
    "199 tokens": (199, 63, 199, 63),
    "1000 outputs": (7, 1000, 96, 96),
    "rank below a tile": (17, 130, 71, 5),
    "all ones": (1, 1, 1, 1),
}


@dataclass(frozen=True)
class Problem:
    """Operands of svf_linear, in the order of its arguments."""

    x: Tensor
    vt: Tensor
    u: Tensor
    scale: Tensor
    slot: Tensor
    bias: Tensor | None = None

    def arguments(self, packed: bool = False) -> tuple[Tensor | Packed | None, ...]:
        vt, u = (pack(self.vt), pack(self.u)) if packed else (self.vt, self.u)
        return self.x, vt, u, self.scale, self.slot, self.bias

    def expected(self) -> Tensor:
        """The float64 result, with the value between the products rounded to x's dtype."""
        hidden = (self.x.double() @ self.vt.double().T) * self.scale.double()[self.slot.long()]
        y = hidden.to(self.x.dtype).double() @ self.u.double().T
        return y if self.bias is None else y + self.bias.double()


def problem(
    tokens: int, out_features: int, in_features: int, rank: int, dtype: torch.dtype, slots: int = 5
) -> Problem:
    """Random operands whose result is of size one."""
    random = torch.Generator().manual_seed(1000 * tokens + out_features)
    return Problem(
        x=torch.randn(tokens, in_features, generator=random).to(dtype),
        vt=(torch.randn(rank, in_features, generator=random) / in_features**0.5).to(dtype),
        u=(torch.randn(out_features, rank, generator=random) / rank**0.5).to(dtype),
        scale=torch.rand(slots, rank, generator=random) + 0.5,
        slot=torch.randint(0, slots, (tokens,), generator=random, dtype=torch.int32),
        bias=torch.randn(out_features, generator=random).to(dtype),
    )


@pytest.mark.combinations(shape=SHAPES, dtype=FLOATS, packed=ORDERS, bias={"bias": True, "no bias": False})
def test_values(shape, dtype, packed, bias, tolerance, poisoned_outputs) -> None:
    p = problem(*shape, dtype)
    p = p if bias else replace(p, bias=None)
    y = svf_linear(*p.arguments(packed))
    assert y.dtype == dtype and y.is_contiguous()
    torch.testing.assert_close(y.double(), p.expected(), **tolerance(dtype))


@DTYPES
def test_reference(dtype, tolerance) -> None:
    p = problem(63, 100, 33, 33, dtype)
    y = svf_linear_ref(*p.arguments())
    assert y.dtype == dtype
    wide = replace(p, x=p.x.float(), vt=p.vt.float(), u=p.u.float(), bias=p.bias.float())
    torch.testing.assert_close(y.double(), wide.expected().to(dtype).double(), **tolerance(dtype))


@DTYPES
@WEIGHTS
def test_nothing_around_the_operands_is_read(dtype, packed, guarded, tolerance) -> None:
    p = problem(19, 70, 45, 37, dtype)
    amid = Problem(*(guarded(t) for t in (p.x, p.vt, p.u, p.scale, p.slot, p.bias)))
    # A column slice of a wider table, as the bank hands them out.
    assert amid.scale.stride(0) > amid.scale.shape[1]
    y = svf_linear(*amid.arguments(packed))
    torch.testing.assert_close(y.double(), p.expected(), **tolerance(dtype))


@DTYPES
@WEIGHTS
def test_a_row_has_the_same_bits_in_every_batch(dtype, packed) -> None:
    p = problem(199, 200, 576, 200, dtype)
    x, vt, u, scale, slot, bias = p.arguments(packed)
    whole = svf_linear(x, vt, u, scale, slot, bias)
    for size in (1, 2, 5, 13, 16, 63, 100):
        parts = [
            svf_linear(x[i : i + size].clone(), vt, u, scale, slot[i : i + size].clone(), bias)
            for i in range(0, len(x), size)
        ]
        assert torch.equal(torch.cat(parts), whole), size
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(svf_linear(x[order], vt, u, scale, slot[order], bias), whole[order])


@DTYPES
@WEIGHTS
def test_a_row_has_the_same_bits_with_any_number_of_threads(dtype, packed) -> None:
    arguments = problem(40, 200, 576, 200, dtype).arguments(packed)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(svf_linear(*arguments))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@DTYPES
def test_packed_and_plain_weights_give_the_same_bits(dtype) -> None:
    p = problem(23, 100, 77, 50, dtype)
    assert torch.equal(svf_linear(*p.arguments(True)), svf_linear(*p.arguments(False)))


@DTYPES
@WEIGHTS
def test_one_expert_and_64_experts_in_a_batch_give_a_token_the_same_bits(dtype, packed) -> None:
    p = problem(64, 96, 64, 64, dtype, slots=64)
    x, vt, u, scale, _, bias = p.arguments(packed)
    mixed = svf_linear(x, vt, u, scale, torch.arange(64, dtype=torch.int32), bias)
    for expert in (0, 1, 31, 63):
        alone = svf_linear(x, vt, u, scale, torch.full((64,), expert, dtype=torch.int32), bias)
        assert torch.equal(alone[expert], mixed[expert])
        assert not torch.equal(alone[expert - 1], mixed[expert - 1])
        single = svf_linear(x, vt, u, scale[expert : expert + 1], torch.zeros(64, dtype=torch.int32), bias)
        assert torch.equal(single, alone)


@DTYPES
@WEIGHTS
def test_identity_scale_is_the_factored_product(dtype, packed, tolerance) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 80, generator=random) / 80**0.5
    u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
    x = torch.randn(9, 80, generator=random)
    p = Problem(x.to(dtype), vt.to(dtype), u.to(dtype), sigma[None], torch.zeros(9, dtype=torch.int32))
    y = svf_linear(*p.arguments(packed)).double()
    if dtype == torch.float32:
        torch.testing.assert_close(y, x.double() @ weight.double().T, **tolerance(dtype))
    torch.testing.assert_close(y, p.expected(), **tolerance(dtype))


@DTYPES
@WEIGHTS
def test_nan_stays_with_its_token(dtype, packed, tolerance) -> None:
    p = problem(20, 70, 45, 37, dtype)
    p.x[3] = float("nan")
    p.scale[4] = float("nan")
    p.slot[:] = p.slot % 4
    p.slot[7] = 4
    right = p.expected()
    y = svf_linear(*p.arguments(packed)).double()
    assert y[[3, 7]].isnan().all()
    kept = [i for i in range(20) if i not in (3, 7)]
    torch.testing.assert_close(y[kept], right[kept], **tolerance(dtype))


@DTYPES
@WEIGHTS
@pytest.mark.parametrize("wrong", [-1, 5, 2**31 - 1, -(2**31)])
def test_a_slot_outside_the_table_is_refused(wrong, dtype, packed) -> None:
    p = problem(6, 40, 24, 24, dtype)
    p.slot[3] = wrong
    with pytest.raises((ValueError, IndexError, RuntimeError), match="slot"):
        svf_linear(*p.arguments(packed))


@DTYPES
def test_leading_components_may_be_views_of_the_full_factors(dtype, tolerance) -> None:
    p = problem(11, 60, 90, 60, dtype)
    cut = replace(p, vt=p.vt[:8], u=p.u[:, :8], scale=p.scale[:, :8])
    torch.testing.assert_close(svf_linear(*cut.arguments()).double(), cut.expected(), **tolerance(dtype))


WRONG = {
    "x is a vector": {"x": lambda p: p.x[0]},
    "inputs differ": {"x": lambda p: p.x[:, :-1]},
    "rank of u differs": {"u": lambda p: p.u[:, :-1]},
    "rank of scale differs": {"scale": lambda p: p.scale[:, :-1]},
    "too few slots": {"slot": lambda p: p.slot[:-1]},
    "slot is int64": {"slot": lambda p: p.slot.long()},
    "scale is float64": {"scale": lambda p: p.scale.double()},
    "scale is transposed": {"scale": lambda p: p.scale.T.contiguous().T},
    "x is float16": {"x": lambda p: p.x.half()},
    "x is float64": {"x": lambda p: p.x.double()},
    "weights of another dtype": {"vt": lambda p: p.vt.bfloat16()},
    "bias too short": {"bias": lambda p: p.bias[:-1]},
    "bias of another dtype": {"bias": lambda p: p.bias.double()},
}


@WEIGHTS
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_operands_are_refused_in_one_line(wrong, packed) -> None:
    p = problem(6, 40, 24, 20, torch.float32)
    p = replace(p, **{name: change(p) for name, change in wrong.items()})
    with pytest.raises((ValueError, RuntimeError)) as error:
        svf_linear(*p.arguments(packed))
    assert "svf_linear" in str(error.value).splitlines()[0]


def test_another_rank_within_the_same_panels_is_refused() -> None:
    p = problem(2, 40, 24, 20, torch.bfloat16)
    narrower = replace(p, vt=p.vt[:19], u=p.u[:, :19])
    with pytest.raises(ValueError, match="do not fit"):
        svf_linear(*narrower.arguments(packed=True))


def gradients(function, p: Problem) -> list[Tensor]:
    """Gradients of x, scale and bias under a fixed random weighting of the result."""
    leaves = [t.detach().clone().requires_grad_() for t in (p.x, p.scale, p.bias)]
    y = function(leaves[0], p.vt, p.u, leaves[1], p.slot, leaves[2])
    weighting = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (y * weighting.to(y.dtype)).sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("tokens", [0, 1, 63])
def test_gradients_of_x_scale_and_bias(tokens, tolerance) -> None:
    p = problem(tokens, 50, 40, 33, torch.float32)

    def exact(x: Tensor, vt: Tensor, u: Tensor, scale: Tensor, slot: Tensor, bias: Tensor) -> Tensor:
        return (x @ vt.double().T * scale[slot.long()]) @ u.double().T + bias

    wide = replace(p, x=p.x.double(), scale=p.scale.double(), bias=p.bias.double())
    for found, right in zip(gradients(svf_linear, p), gradients(exact, wide), strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5 * max(tokens, 1) ** 0.5)


def test_gradients_in_bf16_follow_those_in_float32() -> None:
    p = problem(63, 50, 40, 33, torch.bfloat16)
    wide = replace(p, x=p.x.float(), vt=p.vt.float(), u=p.u.float(), bias=p.bias.float())
    for found, right in zip(gradients(svf_linear, p), gradients(svf_linear, wide), strict=True):
        error = (found.float() - right).norm() / right.norm()
        # A handful of roundings of 2**-9 each.
        assert error < 2**-6


def test_slots_that_no_token_uses_get_no_gradient() -> None:
    p = problem(12, 50, 40, 33, torch.float32)
    p.slot[:] = torch.tensor([1, 3], dtype=torch.int32).repeat(6)
    _, scale, _ = gradients(svf_linear, p)
    assert scale[[0, 2, 4]].eq(0).all() and scale[[1, 3]].ne(0).all()


def test_gradients_need_plain_and_frozen_weights() -> None:
    p = problem(3, 50, 40, 33, torch.float32)
    p.scale.requires_grad_()
    with pytest.raises(RuntimeError, match="plain vt and u"):
        svf_linear(*p.arguments(packed=True))
    with torch.no_grad():
        svf_linear(*p.arguments(packed=True))
    with pytest.raises(RuntimeError, match="vt and u are frozen"):
        svf_linear(p.x, p.vt.requires_grad_(), p.u, p.scale, p.slot)
