"""mix on a CPU: values, independence of the batch and refusals."""

import pytest
import torch
from torch import Tensor

from zweave.kernels import mix, mix_ref

# B, E, R
SHAPES = [(0, 3, 40), (1, 1, 1), (1, 2, 63), (3, 5, 199), (2, 64, 1000), (5, 3, 97920), (2, 0, 8), (2, 3, 0)]


def operands(mixtures: int, experts: int, rank: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(rank)
    table = 1 + 0.05 * torch.randn(experts, rank, generator=random)
    return table, torch.rand(mixtures, experts, generator=random) / max(experts, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, tolerance, guarded, poisoned_outputs) -> None:
    table, alpha = operands(*shape)
    z = mix(guarded(table), guarded(alpha))
    assert z.dtype == torch.float32 and z.shape == (shape[0], shape[2])
    torch.testing.assert_close(z.double(), alpha.double() @ table.double(), **tolerance(torch.float32))


def test_reference(tolerance) -> None:
    table, alpha = operands(3, 5, 199)
    right = alpha.double() @ table.double()
    torch.testing.assert_close(mix_ref(table, alpha).double(), right, **tolerance(torch.float32))


def test_a_mixture_has_the_same_bits_beside_any_other() -> None:
    table, alpha = operands(33, 7, 1000)
    together = mix(table, alpha)
    for b in range(33):
        assert torch.equal(mix(table, alpha[b : b + 1]), together[b : b + 1])
    assert torch.equal(mix(table[:, 100:137], alpha), together[:, 100:137])


def test_an_expert_with_weight_one_comes_back_as_it_is() -> None:
    table, _ = operands(1, 6, 500)
    assert torch.equal(mix(table, torch.eye(6)), table)


def test_experts_are_added_in_their_order() -> None:
    large, small = 2.0**24, 1.0
    table = torch.tensor([[large], [small], [-large]])
    assert mix(table, torch.ones(1, 3)).item() == 0.0
    assert mix(table[[0, 2, 1]], torch.ones(1, 3)).item() == 1.0


WRONG = {
    "table is a vector": (torch.ones(3), torch.ones(1, 3)),
    "alpha is a vector": (torch.ones(3, 4), torch.ones(3)),
    "experts differ": (torch.ones(3, 4), torch.ones(1, 2)),
    "table is bf16": (torch.ones(3, 4).bfloat16(), torch.ones(1, 3)),
    "alpha is float64": (torch.ones(3, 4), torch.ones(1, 3).double()),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_operands_are_refused_in_one_line(wrong) -> None:
    with pytest.raises((ValueError, RuntimeError)) as error:
        mix(*wrong)
    assert "mix" in str(error.value).splitlines()[0]
