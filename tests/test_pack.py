"""Packing: the panel layout, its padding, and the way back."""

import pytest
import torch

from zweave.kernels import Packed, pack, unpack
from zweave.kernels.packed import pack_ref, unpack_ref

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


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2, 3, 4)], ids=["vector", "cube"])
def test_what_is_no_matrix_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="matrix"):
        pack(wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8], ids=str)
def test_other_dtypes_are_refused(dtype) -> None:
    with pytest.raises(RuntimeError, match="bfloat16 or float32"):
        pack(torch.zeros(3, 4, dtype=dtype))


def test_unpack_refuses_a_shape_that_does_not_fit() -> None:
    packed = pack(torch.zeros(40, 50))
    with pytest.raises(RuntimeError, match="shape"):
        unpack(Packed(packed.data, (80, 50)))
