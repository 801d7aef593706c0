"""svf_delta_linear on a CPU: values in every format of the factors, independence of the batch, refusals."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from zweave.kernels import (
    Packed,
    Quantized,
    dequantize,
    gather_components,
    linear,
    pack,
    quantize,
    svf_delta_linear,
    svf_delta_linear_ref,
)
from zweave.kernels.layout.quantize import round_activations

FLOATS = {"bf16": torch.bfloat16, "f32": torch.float32}
DTYPES = pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
ORDERS = {"packed": True, "plain": False}
WEIGHTS = pytest.mark.parametrize("packed", ORDERS.values(), ids=ORDERS)
# Format and group: a scale a block of 64 inputs, some blocks, and a row.
FACTORS = {
    "int8 by 64": ("int8", 64),
    "plain": None,
    "int8": ("int8", None),
    "int8 by 192": ("int8", 192),
    "int4": ("int4", None),
    "int4 by 128": ("int4", 128),
    "int4 a row": ("int4", 1200),
}
FORMATS = pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
# T, M, N, K
SHAPES = {
    "1001 inputs": (7, 40, 1001, 40),
    "empty": (0, 64, 96, 64),
    "no components": (3, 40, 24, 0),
    "no inputs": (3, 40, 0, 5),
    "one token": (1, 576, 192, 72),
    "63 tokens": (63, 100, 33, 33),
    "199 tokens": (199, 63, 199, 63),
    "4096 tokens": (4096, 17, 21, 3),
    "1000 outputs": (7, 1000, 96, 12),
    "components of several slices": (30, 300, 37, 300),
    "fewer components than a panel": (17, 130, 71, 5),
    "all ones": (1, 1, 1, 1),
}


@dataclass(frozen=True)
class Problem:
    """Operands of svf_delta_linear, in the order of its arguments."""

    x: Tensor
    w: Tensor
    vt: Tensor | Quantized
    u: Tensor | Quantized
    delta: Tensor
    slot: Tensor
    bias: Tensor | None = None

    def arguments(self, packed: bool = False) -> tuple[Tensor | Packed | Quantized | None, ...]:
        weights = (self.w, self.vt, self.u)
        return (self.x, *(map(pack, weights) if packed else weights), self.delta, self.slot, self.bias)

    def expected(self) -> Tensor:
        """The float64 result, with the value between the factors rounded to x's dtype; what meets integers is
        rounded as they want it."""
        hidden = through(self.x, self.vt) * self.delta.double()[self.slot.long()]
        y = self.x.double() @ self.w.double().T + through(hidden.to(self.x.dtype), self.u)
        return y if self.bias is None else y + self.bias.double()

    def delta_alone(self) -> Tensor:
        """U (delta * (V^T x)) in float64, of the factors' values and nothing rounded between."""
        vt, u = (
            dequantize(f).double() if isinstance(f, Quantized) else f.double() for f in (self.vt, self.u)
        )
        return ((self.x.double() @ vt.T) * self.delta.double()[self.slot.long()]) @ u.T

    def limits(self, limits: dict[str, float]) -> dict[str, float]:
        """A value between the factors that rounds the other way moves by a step of its block: 1/127 of the peak."""
        if not isinstance(self.u, Quantized) or self.x.numel() == 0 or self.u.shape[1] == 0:
            return limits
        hidden = through(self.x, self.vt) * self.delta.double()[self.slot.long()]
        step = hidden[hidden.isfinite()].abs().max() / 127 * dequantize(self.u).abs().max()
        return limits | {"atol": limits["atol"] + float(step)}


def through(x: Tensor, weight: Tensor | Quantized) -> Tensor:
    """x weight^T in float64, as a product with such weights sees x."""
    if isinstance(weight, Quantized):
        return round_activations(x).double() @ dequantize(weight).double().T
    return x.double() @ weight.double().T


def problem(
    tokens: int,
    out_features: int,
    in_features: int,
    kept: int,
    dtype: torch.dtype,
    factors: tuple[str, int | None] | None = None,
    slots: int = 5,
) -> Problem:
    """Random operands whose result is of size one; slot 0 is the base."""
    random = torch.Generator().manual_seed(1000 * tokens + out_features)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    vt = normal(kept, in_features) / max(in_features, 1) ** 0.5
    u = normal(out_features, kept) / max(kept, 1) ** 0.5
    delta = torch.rand(slots, kept, generator=random) - 0.5
    delta[0] = 0
    return Problem(
        x=normal(tokens, in_features).to(dtype),
        w=(normal(out_features, in_features) / max(in_features, 1) ** 0.5).to(dtype),
        vt=vt.to(dtype) if factors is None else quantize(vt, *factors),
        u=u.to(dtype) if factors is None else quantize(u, *factors),
        delta=delta,
        slot=torch.randint(0, slots, (tokens,), generator=random, dtype=torch.int32),
        bias=normal(out_features).to(dtype),
    )


@pytest.mark.combinations(shape=SHAPES, factors=FACTORS, packed=ORDERS, dtype=FLOATS)
def test_values(shape, dtype, packed, factors, tolerance, poisoned_outputs) -> None:
    for p in (problem(*shape, dtype, factors), replace(problem(*shape, dtype, factors), bias=None)):
        y = svf_delta_linear(*p.arguments(packed))
        assert y.dtype == dtype and y.is_contiguous()
        torch.testing.assert_close(y.double(), p.expected(), **p.limits(tolerance(dtype)))


@DTYPES
@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("outlier", [1, 1000], ids=["even", "outlier"])
def test_rounded_activations_cost_a_hundredth_of_the_delta(outlier, format, dtype) -> None:
    p = problem(199, 100, 576, 300, dtype, (format, None))
    # An outlier channel costs its own block.
    p.x[:, 100] *= outlier
    y = svf_delta_linear(*replace(p, w=torch.zeros_like(p.w), bias=None).arguments(True)).double()
    truth = p.delta_alone()
    # Two roundings of 1 / (127 sqrt(12)) of a block's peak, 2.5 to 3 standard deviations: .7% each.
    assert 0.001 < (y - truth).norm() / truth.norm() < 0.0125


@DTYPES
@FORMATS
def test_reference(dtype, factors, tolerance) -> None:
    p = problem(63, 100, 33, 33, dtype, factors)
    y = svf_delta_linear_ref(*p.arguments())
    assert y.dtype == dtype
    expected = p.x.double() @ p.w.double().T + p.delta_alone() + p.bias.double()
    torch.testing.assert_close(y.double(), expected, **tolerance(dtype))


@DTYPES
@FORMATS
def test_the_base_is_the_plain_linear_bit_for_bit(dtype, factors) -> None:
    p = problem(70, 100, 333, 100, dtype, factors)
    # What row 0 of the table holds does not matter.
    p.delta[0] = float("nan")
    base = p.slot == 0
    assert 0 < base.sum() < len(base)
    y = svf_delta_linear(*p.arguments(True))
    dense = linear(p.x, pack(p.w), p.bias)
    assert torch.equal(y[base], dense[base])
    assert not torch.equal(y[~base], dense[~base]) and y.isfinite().all()
    alone = replace(p, slot=torch.zeros_like(p.slot))
    assert torch.equal(svf_delta_linear(*alone.arguments(True)), dense)


@DTYPES
@FORMATS
def test_a_row_has_the_same_bits_in_every_batch(dtype, factors) -> None:
    x, w, vt, u, delta, slot, bias = problem(199, 90, 576, 300, dtype, factors).arguments(True)
    whole = svf_delta_linear(x, w, vt, u, delta, slot, bias)
    for size in (1, 2, 5, 12, 13, 63, 100):
        batches = zip(x.split(size), slot.split(size), strict=True)
        parts = [svf_delta_linear(rows.clone(), w, vt, u, delta, s.clone(), bias) for rows, s in batches]
        assert torch.equal(torch.cat(parts), whole), size
    order = torch.randperm(199, generator=torch.Generator().manual_seed(0))
    assert torch.equal(svf_delta_linear(x[order], w, vt, u, delta, slot[order], bias), whole[order])


@DTYPES
@FORMATS
def test_a_row_has_the_same_bits_with_any_number_of_threads(dtype, factors, threads) -> None:
    arguments = problem(40, 200, 576, 72, dtype, factors).arguments(True)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(svf_delta_linear(*arguments))
    assert all(torch.equal(result, results[0]) for result in results)


@DTYPES
@FORMATS
def test_packed_and_plain_weights_give_the_same_bits(dtype, factors) -> None:
    p = problem(23, 100, 77, 50, dtype, factors)
    assert torch.equal(svf_delta_linear(*p.arguments(True)), svf_delta_linear(*p.arguments(False)))


@DTYPES
@WEIGHTS
def test_nothing_around_the_operands_is_read(dtype, packed, guarded, tolerance) -> None:
    p = problem(19, 70, 45, 37, dtype)
    amid = Problem(*(guarded(t) for t in (p.x, p.w, p.vt, p.u, p.delta, p.slot, p.bias)))
    y = svf_delta_linear(*amid.arguments(packed))
    torch.testing.assert_close(y.double(), p.expected(), **tolerance(dtype))


@DTYPES
@FORMATS
def test_nan_stays_with_its_token(dtype, factors, tolerance) -> None:
    p = problem(20, 70, 45, 37, dtype, factors)
    p.slot[:] = p.slot % 4
    p.slot[7] = 4
    right, limits = p.expected(), p.limits(tolerance(dtype))
    p.x[3] = float("nan")
    p.delta[4] = float("nan")
    y = svf_delta_linear(*p.arguments(True)).double()
    assert y[[3, 7]].isnan().all()
    kept = [i for i in range(20) if i not in (3, 7)]
    torch.testing.assert_close(y[kept], right[kept], **limits)


@DTYPES
@pytest.mark.parametrize("factors", [None, ("int8", None), ("int4", None)], ids=["plain", "int8", "int4"])
def test_any_components(dtype, factors, tolerance) -> None:
    full = problem(21, 60, 90, 60, dtype)
    index = torch.tensor([57, 3, 4, 20, 31, 59, 0])
    delta = torch.zeros(5, 60)
    delta[1:, index] = torch.rand(4, 7, generator=torch.Generator().manual_seed(3)) - 0.5
    u, vt = gather_components(full.u, full.vt, index)
    assert u.is_contiguous() and vt.is_contiguous()
    if factors is not None:
        u, vt = quantize(u, *factors), quantize(vt, *factors)
    part = replace(full, u=u, vt=vt, delta=delta[:, index])
    y = svf_delta_linear(*part.arguments(True))
    torch.testing.assert_close(y.double(), part.expected(), **part.limits(tolerance(dtype)))
    if factors is None:
        whole = replace(full, delta=delta).expected()
        torch.testing.assert_close(y.double(), whole, **tolerance(dtype))


@pytest.mark.parametrize(
    ("index", "message"),
    [([0, 20], "20 components"), ([-1], "20 components"), ([3, 3], "twice"), ([[1]], "vector")],
    ids=["too large", "negative", "repeated", "matrix"],
)
def test_wrong_components_are_refused(index, message) -> None:
    with pytest.raises(ValueError, match=message):
        gather_components(torch.zeros(40, 20), torch.zeros(20, 24), torch.tensor(index))


@FORMATS
@pytest.mark.parametrize("wrong", [-1, 5, 2**31 - 1, -(2**31)])
def test_a_slot_outside_the_table_is_refused(wrong, factors) -> None:
    p = problem(6, 40, 24, 24, torch.bfloat16, factors)
    p.slot[3] = wrong
    with pytest.raises(RuntimeError, match="slot"):
        svf_delta_linear(*p.arguments(True))


WRONG: dict[str, dict[str, Callable[[Problem], object]]] = {
    "x is a vector": {"x": lambda p: p.x[0]},
    "inputs differ": {"x": lambda p: p.x[:, :-1]},
    "components of u differ": {"u": lambda p: p.u[:, :-1]},
    "components of delta differ": {"delta": lambda p: p.delta[:, :-1]},
    "outputs of w and u differ": {"w": lambda p: p.w[:-1]},
    "too few slots": {"slot": lambda p: p.slot[:-1]},
    "slot is int64": {"slot": lambda p: p.slot.long()},
    "delta is float64": {"delta": lambda p: p.delta.double()},
    "x is float64": {"x": lambda p: p.x.double()},
    "weights of another dtype": {"vt": lambda p: p.vt.bfloat16()},
    "quantised w": {"w": lambda p: pack(quantize(p.w, "int8"))},
    "bias too short": {"bias": lambda p: p.bias[:-1]},
    "integers without scales": {"vt": lambda p: quantize(p.vt, "int8").data},
    "fp8": {"u": lambda p: quantize(p.u, "fp8")},
    "groups of less than a block": {"vt": lambda p: quantize(p.vt, "int4", 16)},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_operands_are_refused_in_one_line(wrong) -> None:
    p = problem(6, 40, 24, 20, torch.float32)
    p = replace(p, **{name: change(p) for name, change in wrong.items()})
    with pytest.raises((ValueError, RuntimeError)) as error:
        svf_delta_linear(*p.arguments())
    assert "svf_delta_linear" in str(error.value).splitlines()[0]


def test_scales_of_another_grouping_are_refused() -> None:
    p = problem(6, 40, 128, 20, torch.float32, ("int4", 64))
    packed = pack(p.vt)
    for wrong in (
        replace(packed, group=128),
        replace(packed, group=0),
        replace(packed, scale=packed.scale[:1]),
    ):
        with pytest.raises(RuntimeError, match="svf_delta_linear: vt must have shape"):
            svf_delta_linear(p.x, p.w, wrong, p.u, p.delta, p.slot)
