"""Quantised matrices: the layout of their bytes, and how far a round trip may lead."""

from dataclasses import replace

import pytest
import torch

from zweave.kernels.layout.quantize import LIMITS, Quantized, dequantize, quantize

FORMATS = pytest.mark.parametrize("format", LIMITS)
SHAPES = [(1, 1), (5, 63), (7, 64), (3, 199), (2, 1000), (0, 8), (4, 0)]


def weight(*shape: int) -> torch.Tensor:
    """Rows of very different size, one of them zero."""
    random = torch.Generator().manual_seed(shape[1])
    values = torch.randn(*shape, generator=random, dtype=torch.float64)
    values *= 10.0 ** torch.arange(-6, shape[0] - 6)[:, None]
    if shape[0] > 1:
        values[1] = 0
    return values.float()


@FORMATS
@pytest.mark.parametrize("group", [None, 1, 32, 64, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_round_trip_stays_within_the_bound(shape, group, format) -> None:
    w = weight(*shape)
    q = quantize(w, format, group)
    back = dequantize(q)
    assert back.shape == w.shape and back.dtype == torch.float32
    scale = q.scale.double().repeat_interleave(q.group, 1)[:, : shape[1]]
    bound = torch.maximum(w.double().abs() / 16, scale * 2**-10) if format == "fp8" else scale / 2
    # The scale, the quotient and the product are each rounded to float32 once.
    bound = bound + 4 * 2**-24 * w.double().abs()
    assert ((back.double() - w.double()).abs() <= bound).all()
    assert (back[w == 0] == 0).all()


@FORMATS
def test_the_largest_of_a_group_maps_to_the_limit(format) -> None:
    w = torch.tensor([[0.5, -2.0, 1.0, 0.25, 3.0, 0.0]])
    q = quantize(w, format, 3)
    torch.testing.assert_close(q.scale, torch.tensor([[2.0, 3.0]]) / LIMITS[format])
    torch.testing.assert_close(dequantize(q)[0, [1, 4]], torch.tensor([-2.0, 3.0]))


def test_int4_keeps_the_even_input_in_the_low_nibble_and_pads_with_zero() -> None:
    q = quantize(torch.tensor([[-7.0, 7.0, 3.0]]), "int4", 4)
    assert q.scale.item() == 1.0
    assert q.data.tolist() == [[(7 + 8) << 4 | (-7 + 8), 8 << 4 | (3 + 8)]]
    assert dequantize(q).tolist() == [[-7.0, 7.0, 3.0]]


@FORMATS
def test_defaults_and_bytes(format) -> None:
    q = quantize(weight(8, 256), format)
    assert q.scale_a_row == (format != "int4")
    assert q.scale.shape == ((8, 4) if format == "int4" else (8, 1))
    assert q.nbytes == (8 * 128 + 4 * 32 if format == "int4" else 8 * 256 + 4 * 8)


@FORMATS
@pytest.mark.parametrize("tiny", [1e-45, 1e-40, 1e-38])
def test_numbers_at_the_bottom_of_float32_stay_finite(tiny, format) -> None:
    back = dequantize(quantize(torch.full((1, 3), tiny), format))
    assert back.isfinite().all() and (back - tiny).abs().max() <= 64 * 1e-45 + tiny / 8


def test_half_precision_weights_and_views_are_taken() -> None:
    w = weight(6, 40)
    assert torch.equal(quantize(w.bfloat16().T, "int8").data, quantize(w.bfloat16().float().T, "int8").data)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize(torch.ones(3), "int8"), r"wants a float matrix, got \[3\]"),
        (lambda: quantize(torch.ones(2, 2, dtype=torch.int8), "int8"), "wants a float matrix"),
        (lambda: quantize(torch.ones(2, 2), "int2"), "one of int8, int4, fp8, not 'int2'"),
        (lambda: quantize(torch.ones(2, 2), "int4", 0), "group must be 1 or more, not 0"),
        (lambda: quantize(torch.tensor([[1.0, float("inf")]]), "fp8"), "not finite"),
        (lambda: quantize(torch.tensor([[1.0, float("nan")]]), "int8"), "not finite"),
    ],
)
def test_wrong_arguments_are_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "int3"}, "one of int8, int4, fp8"),
        ({"group": 0}, "group must be 1 or more"),
        ({"shape": (3, 5)}, r"int8 data of a 3 x 5 matrix must be \[3, 5\] torch.int8"),
        ({"scale": torch.ones(3, 2)}, r"int8 scale of a 3 x 4 matrix must be \[3, 1\]"),
        ({"scale": torch.ones(3, 1).double()}, "must be .* torch.float32"),
        ({"data": torch.zeros(4, 3, dtype=torch.int8).T}, "contiguous"),
    ],
)
def test_a_matrix_whose_parts_do_not_fit_is_refused(change, message) -> None:
    q = quantize(torch.ones(3, 4), "int8")
    assert isinstance(q, Quantized)
    with pytest.raises(ValueError, match=message):
        replace(q, **change)
