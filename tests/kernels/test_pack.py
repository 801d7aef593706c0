"""Packing: the panel layout, its padding, and the way back."""

import pytest
import torch

from zweave.kernels import Packed, dequantize, pack, quantize, unpack, unpack_quantized
from zweave.kernels.layout.packed import pack_ref, unpack_ref

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
SHAPES = [(1, 1), (32, 64), (33, 2), (63, 199), (199, 63), (31, 17), (64, 1000), (100, 33), (0, 5), (5, 0)]


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layout_and_way_back(shape, dtype, poisoned_outputs) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    packed = pack(weight)
    assert packed.shape == shape and packed.dtype == dtype
    assert torch.equal(packed.data, pack_ref(weight))
    assert torch.equal(unpack(packed), weight)
    assert torch.equal(unpack_ref(packed.data, *shape), weight)


@DTYPES
def test_element_lies_where_the_docstring_says(dtype) -> None:
    group = 2 if dtype == torch.bfloat16 else 1
    weight = torch.arange(70 * 90).view(70, 90).remainder(251).to(dtype)
    data = pack(weight).data
    for m, n in [(0, 0), (15, 89), (32, 0), (69, 45)]:
        assert data[m // 16, n // group, m % 16, n % group] == weight[m, n]


@DTYPES
def test_nothing_around_the_matrix_is_read(dtype, guarded) -> None:
    weight = torch.randn(37, 41, generator=torch.Generator().manual_seed(2)).to(dtype)
    amid = guarded(weight)
    assert torch.equal(pack(amid).data, pack_ref(weight))
    assert torch.equal(pack(amid.T).data, pack_ref(weight.T))


@DTYPES
def test_nan_and_signed_zeros_survive(dtype) -> None:
    weight = torch.zeros(40, 50, dtype=dtype)
    weight[3, 5], weight[33, 49], weight[1, 1] = float("nan"), float("-inf"), -0.0
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    assert torch.equal(unpack(pack(weight)).view(bits), weight.view(bits))


@pytest.mark.parametrize("group", [None, 64, 128], ids=["default", "64", "128"])
@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantised_layout_and_way_back(shape, format, group, poisoned_outputs) -> None:
    weight = quantize(torch.randn(shape, generator=torch.Generator().manual_seed(3)), format, group)
    packed = pack(weight)
    assert packed.shape == shape
    assert torch.equal(packed.data, pack_ref(weight.data)) and torch.equal(
        packed.scale, pack_ref(weight.scale)
    )
    back = unpack_quantized(packed)
    assert torch.equal(back.data, weight.data) and torch.equal(back.scale, weight.scale)
    assert (back.shape, back.format) == (shape, format) and back.scale_a_row == weight.scale_a_row
    assert torch.equal(unpack(packed), dequantize(weight))


def test_quantised_element_lies_where_the_docstring_says() -> None:
    weight = torch.randint(-7, 8, (70, 91), generator=torch.Generator().manual_seed(4)).float()
    weight[:, [0, 64]] = 127
    data = pack(quantize(weight, "int8")).data
    weight[:, [0, 64]] = 7
    nibbles = pack(quantize(weight, "int4", 64))
    for m, n in [(0, 1), (15, 89), (32, 3), (32, 4), (69, 90)]:
        assert data[m // 16, n // 4, m % 16, n % 4] == weight[m, n]
        assert nibbles.data[m // 16, n // 8, m % 16, n % 4] >> 4 * (n % 8 // 4) & 15 == weight[m, n] + 8
        assert nibbles.scale[m // 16, n // 64, m % 16, 0] == 1


@pytest.mark.parametrize(
    ("format", "group", "message"), [("fp8", None, "fp8"), ("int4", 32, "multiple of 64")]
)
def test_what_no_cpu_kernel_multiplies_is_refused(format, group, message) -> None:
    with pytest.raises(ValueError, match=message):
        pack(quantize(torch.ones(3, 40), format, group))


def test_plain_weights_are_not_unpacked_as_quantised() -> None:
    with pytest.raises(ValueError, match="not quantised"):
        unpack_quantized(pack(torch.ones(3, 4)))


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2, 3, 4)], ids=["vector", "cube"])
def test_what_is_no_matrix_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="matrix"):
        pack(wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8], ids=str)
def test_other_dtypes_are_refused(dtype) -> None:
    with pytest.raises((RuntimeError, ValueError), match="bfloat16 or float32"):
        pack(torch.zeros(3, 4, dtype=dtype))


def test_unpack_refuses_a_shape_that_does_not_fit() -> None:
    packed = pack(torch.zeros(40, 50))
    with pytest.raises(RuntimeError, match="shape"):
        unpack(Packed(packed.data, (80, 50)))
