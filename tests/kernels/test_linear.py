"""linear on a CPU: values, independence of the batch and refusals."""

import pytest
import torch
from torch import Tensor

from zweave.kernels import Packed, linear, linear_ref, pack

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
# T, M, N
SHAPES = [
    (0, 64, 96),
    (1, 1, 1),
    (1, 576, 199),
    (2, 63, 64),
    (3, 100, 33),
    (13, 1000, 70),
    (25, 40, 1000),
    (63, 199, 63),
    (97, 31, 45),
    (1025, 65, 24),
    (5, 0, 8),
    (5, 8, 0),
]


def operands(
    tokens: int, out_features: int, in_features: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias whose product is of size one."""
    random = torch.Generator().manual_seed(7 * tokens + out_features)
    x = torch.randn(tokens, in_features, generator=random)
    weight = torch.randn(out_features, in_features, generator=random) / max(in_features, 1) ** 0.5
    return x.to(dtype), weight.to(dtype), torch.randn(out_features, generator=random).to(dtype)


@DTYPES
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, packed, dtype, tolerance, poisoned_outputs) -> None:
    x, weight, bias = operands(*shape, dtype)
    right = x.double() @ weight.double().T
    w = pack(weight) if packed else weight
    for b in (None, bias):
        y = linear(x, w, b)
        assert y.dtype == dtype and y.is_contiguous()
        torch.testing.assert_close(y.double(), right if b is None else right + b.double(), **tolerance(dtype))


def test_logits_in_float32_are_not_rounded_to_bf16(tolerance) -> None:
    x, weight, bias = operands(17, 130, 99, torch.bfloat16)
    y = linear(x, pack(weight), bias, out_dtype=torch.float32)
    assert y.dtype == torch.float32
    right = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(y.double(), right, **tolerance(torch.float32))
    assert torch.equal(y.bfloat16(), linear(x, pack(weight), bias))


@DTYPES
def test_reference(dtype, tolerance) -> None:
    x, weight, bias = operands(9, 50, 99, dtype)
    right = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(linear_ref(x, weight, bias).double(), right, **tolerance(dtype))


@DTYPES
@pytest.mark.parametrize("in_features", [1, 2, 45, 64])
def test_nothing_around_the_operands_is_read(in_features, dtype, guarded, tolerance) -> None:
    x, weight, bias = operands(29, 70, in_features, dtype)
    y = linear(guarded(x), pack(guarded(weight)), guarded(bias))
    right = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(y.double(), right, **tolerance(dtype))


@DTYPES
@pytest.mark.parametrize("in_features", [576, 333])
def test_a_row_has_the_same_bits_in_every_batch(in_features, dtype) -> None:
    x, weight, bias = operands(200, 300, in_features, dtype)
    w = pack(weight)
    whole = linear(x, w, bias)
    for size in [*range(1, 28), 63, 100]:
        parts = [linear(x[i : i + size], w, bias) for i in range(0, len(x), size)]
        assert torch.equal(torch.cat(parts), whole), size
    assert torch.equal(linear(x, weight, bias), whole)


@DTYPES
@pytest.mark.usefixtures("poisoned_outputs")
@pytest.mark.parametrize("tokens", [1, 3, 40, 200])
def test_a_row_has_the_same_bits_with_any_number_of_threads(tokens, dtype, threads) -> None:
    """Threads take from one another's share; an output that none wrote would be NaN, which equals nothing."""
    x, weight, bias = operands(tokens, 1000, 300, dtype)
    w = pack(weight)
    results = []
    for count in (1, 2, 3, 5, 5, 5):
        threads(count)
        results.append(linear(x, w, bias))
    assert all(torch.equal(result, results[0]) for result in results)


@DTYPES
def test_an_output_does_not_depend_on_the_outputs_beside_it(dtype) -> None:
    x, weight, _ = operands(30, 200, 100, dtype)
    whole = linear(x, pack(weight))
    assert torch.equal(linear(x, pack(weight[77:140])), whole[:, 77:140])


@DTYPES
def test_nan_stays_with_its_row(dtype) -> None:
    x, weight, _ = operands(26, 70, 45, dtype)
    clean = linear(x, pack(weight))
    x[11] = float("nan")
    y = linear(x, pack(weight))
    assert y[11].isnan().all()
    kept = [t for t in range(26) if t != 11]
    assert torch.equal(y[kept], clean[kept])


X, W, B = operands(4, 40, 24, torch.float32)
WRONG: dict[str, tuple[Tensor, Tensor | Packed, Tensor | None]] = {
    "x is a vector": (X[0], W, None),
    "inputs differ": (X[:, :-1], W, None),
    "packed inputs differ": (X[:, :-1], pack(W), None),
    "weight is a vector": (X, W[0], None),
    "bias is too short": (X, W, B[:-1]),
    "bias of another dtype": (X, W, B.bfloat16()),
    "weight of another dtype": (X, W.bfloat16(), None),
    "packed weight of another dtype": (X, pack(W.bfloat16()), None),
    "x is float16": (X.half(), W.half(), None),
    "x is transposed": (X.T.contiguous().T, W, None),
    "packed data cut": (X, Packed(pack(W).data[:1], (40, 24)), None),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_operands_are_refused_in_one_line(wrong) -> None:
    with pytest.raises((ValueError, RuntimeError)) as error:
        linear(*wrong)
    assert str(error.value).startswith("linear: ")


def test_other_result_dtypes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="out_dtype"):
        linear(X, W, out_dtype=torch.bfloat16)
