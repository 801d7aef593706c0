"""A text encoder's linears on the CPU kernels: the same states."""

import pytest
import torch
from torch import nn

from zweave.describe.packed_linear import PackedLinear, pack_linears


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 37), (5, 37), (2, 7, 37), (0, 37)])
def test_it_multiplies_as_the_linear_does(shape: tuple[int, ...], bias: bool, poisoned_outputs):
    torch.manual_seed(0)
    plain, x = nn.Linear(37, 53, bias=bias), torch.randn(shape)
    with torch.no_grad():
        expected = plain.double()(x.double()).float()
    torch.testing.assert_close(PackedLinear(plain.float())(x), expected)


def test_every_linear_of_a_model_is_replaced():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Sequential(nn.GELU(), nn.Linear(24, 8)))
    x = torch.randn(3, 16)
    expected = model(x).detach()
    pack_linears(model)
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    torch.testing.assert_close(model(x), expected)
