"""Refit factors stand for W, whatever its shape, and an expert acts on the same components."""

import pytest
import torch

from zweave.decomposition.refit.gptq import nearest
from zweave.decomposition.refit.refit import output_error, refit
from zweave.kernels import dequantize, grid_of

SHAPES = [(96, 96), (200, 64), (64, 200), (65, 63), (1, 5), (5, 1)]


def case(shape: tuple[int, int], decay: float = 1.0) -> tuple[torch.Tensor, ...]:
    """W with a falling spectrum, its factors, and the second moments of uneven inputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
    sigma = sigma * torch.linspace(1, 0.1, len(sigma), dtype=torch.float64) ** decay
    x = torch.randn(shape[1], 400, generator=generator, dtype=torch.float64)
    x *= torch.linspace(0.2, 3, shape[1], dtype=torch.float64)[:, None]
    return ((u * sigma) @ vt).float(), u.float(), sigma.float(), vt.float(), x @ x.T / 400


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_product_stays(shape: tuple[int, int]) -> None:
    weight, u, _, vt, moments = case(shape)
    found = refit(weight, u, vt, moments)
    assert (found.u.shape, found.vt.shape) == ((shape[0], min(shape)), (min(shape), shape[1]))
    assert output_error(weight, found.merged(), moments) < 0.02
    # Both factors rounded where they stand lose far more, the coarse one alone already.
    square = "vt" if shape[0] >= shape[1] else "u"
    if min(shape) > 1:
        assert getattr(found, square).format == "int4"
        coarse = (u.double(), dequantize(nearest(vt, "int4")).double())
        if square == "u":
            coarse = (dequantize(nearest(u, "int4")).double(), vt.double())
        sigma = (u.T.double() @ weight.double() @ vt.T.double()).diagonal()
        plain = (coarse[0] * sigma) @ coarse[1]
        assert output_error(weight, found.merged(), moments) < 0.2 * output_error(weight, plain, moments)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_an_expert_acts_on_the_same_components(shape: tuple[int, int]) -> None:
    weight, u, sigma, vt, moments = case(shape)
    found = refit(weight, u, vt, moments)
    z = 1 + 0.1 * torch.randn(len(sigma), generator=torch.Generator().manual_seed(5))
    changed = (u.double() * (sigma.double() * z)) @ vt.double()
    asked = output_error(changed, weight, moments)
    # What z changes comes out, but for a small part; at one it changes nothing.
    assert output_error(changed, found.merged(z), moments) < 0.35 * asked
    assert torch.equal(found.merged(torch.ones(len(sigma))), found.merged())


def test_bytes() -> None:
    weight, u, _, vt, moments = case((200, 64))
    found = refit(weight, u, vt, moments)
    # int4 64 x 64, int8 200 x 64, a scale of 16 bits for each group of 32 and each component.
    assert found.nbytes == 64 * 32 + 200 * 64 + 2 * (2 * 64 + 2 * 200 + 64)


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1e6])
@pytest.mark.parametrize("shape", [(64, 96), (96, 64)], ids=str)
def test_the_kernels_hold_the_factors_to_the_bit_whatever_the_size_of_w(
    shape: tuple[int, int], size: float
) -> None:
    weight, u, _, vt, moments = case(shape)
    found = refit(size * weight, u, vt, moments)
    for factor in (found.u, found.vt):
        assert torch.equal(grid_of(factor).values(), dequantize(factor))
    assert output_error(size * weight, found.merged(), moments) < 0.02


def test_it_is_the_same_every_time() -> None:
    first, second = (refit(*(case((90, 120))[index] for index in (0, 1, 3, 4))) for _ in range(2))
    for one, other in ((first.u, second.u), (first.vt, second.vt)):
        assert torch.equal(one.data, other.data) and torch.equal(one.scale, other.scale)
    assert torch.equal(first.scale, second.scale)


def test_a_square_factor_that_int4_would_make_singular_is_kept_finer() -> None:
    # Four neighbouring rows that differ by less than int4 tells: rounded they would be one.
    near = torch.eye(8)
    near[1] = near[0] + torch.tensor([0.0, 0.06, 0, 0, 0, 0, 0, 0])
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(6))
    found = refit(weight, torch.linalg.qr(weight).Q, near, torch.eye(8))
    assert found.vt.format == "int8"
    assert output_error(weight, found.merged(), torch.eye(8)) < 0.1


def test_a_matrix_without_full_rank() -> None:
    weight, _, _, _, moments = case((80, 60))
    weight[:, 30:] = 0
    u, _, vt = torch.linalg.svd(weight, full_matrices=False)
    assert output_error(weight, refit(weight, u, vt, moments).merged(), moments) < 0.02
    zero = refit(torch.zeros(80, 60), u, vt, moments)
    assert output_error(torch.zeros(80, 60), zero.merged(), moments) == 0 and not zero.merged().any()
