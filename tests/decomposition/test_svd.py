"""One matrix: each driver gives orthonormal factors in canonical form; the next steps in if one fails."""

import pytest
import torch

from zweave.decomposition.svd import DRIVERS, relative_error, svd, working_bytes
from zweave.errors import ZweaveError

SHAPES = [(1, 1), (63, 63), (199, 63), (63, 199), (1, 40), (40, 1)]


def matrix(shape, rank=None):
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    if rank is None:
        return torch.randn(shape, generator=generator)
    return torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)


def assert_canonical(found, weight):
    rank = min(weight.shape)
    assert found.u.shape == (weight.shape[0], rank) and found.vt.shape == (rank, weight.shape[1])
    for factor in (found.u, found.sigma, found.vt):
        assert factor.dtype == torch.float32 and factor.is_contiguous()
    assert (found.sigma.diff() <= 0).all() and (found.sigma >= 0).all()
    eye = torch.eye(rank)
    torch.testing.assert_close(found.u.T @ found.u, eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.vt @ found.vt.T, eye, rtol=0, atol=1e-5)
    assert (found.vt.gather(1, found.vt.abs().argmax(1, keepdim=True)) > 0).all()
    assert found.error < 1e-5
    rebuilt = (found.u * found.sigma) @ found.vt
    torch.testing.assert_close(rebuilt, weight.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver[0])
def test_every_driver_decomposes(driver, shape):
    weight = matrix(shape)
    found = svd(weight, [driver])
    assert_canonical(found, weight)
    assert found.driver == driver[0]
    torch.testing.assert_close(
        found.sigma, torch.linalg.svdvals(weight.double()).float(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("rank", [0, 1, 20])
@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver[0])
def test_factors_are_orthonormal_where_rank_is_lacking(driver, rank):
    weight = matrix((199, 63), rank)
    found = svd(weight, [driver])
    assert_canonical(found, weight)
    assert (found.sigma[rank:] < 1e-4).all()


@pytest.mark.parametrize("kind", ["repeated columns", "zero columns", "whole numbers"])
@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver[0])
def test_null_spaces_that_rounding_does_not_hide(driver, kind):
    weight = matrix((199, 62))
    if kind == "repeated columns":
        weight[:, 31:] = weight[:, :31]
    elif kind == "zero columns":
        weight[:, 10:] = 0
    else:
        weight = matrix((199, 5)).mul(3).round() @ matrix((5, 62)).mul(3).round()
    found = svd(weight, [driver])
    assert_canonical(found, weight)
    exact = torch.linalg.svdvals(weight.double()).float()
    torch.testing.assert_close(found.sigma, exact, rtol=1e-5, atol=1e-6 * float(exact[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types_are_decomposed_in_float32(dtype):
    weight = matrix((63, 40)).to(dtype)
    assert_canonical(svd(weight), weight)


def failing(tall):
    raise torch.linalg.LinAlgError("did not converge")


def wrong(tall):
    u, sigma, vt = torch.linalg.svd(tall, full_matrices=False)
    return u, sigma * 1.001, vt


def not_finite(tall):
    u, sigma, vt = torch.linalg.svd(tall, full_matrices=False)
    return u, sigma * float("nan"), vt


@pytest.mark.parametrize("bad", [failing, wrong, not_finite])
@pytest.mark.parametrize("shape", [(40, 63), (63, 40)], ids=str)
def test_the_next_driver_steps_in(bad, shape):
    found = svd(matrix(shape), [("bad", bad), *DRIVERS[1:]])
    assert found.driver == "gesdd64"
    assert_canonical(found, matrix(shape))


def test_all_failing_is_an_error_that_names_them():
    with pytest.raises(ZweaveError, match=r"a did not converge, b left a relative error of 1\.0e-03"):
        svd(matrix((20, 10)), [("a", failing), ("b", wrong)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_weights_that_are_not_finite_are_refused(value):
    weight = matrix((63, 40))
    weight[62, 39] = value
    with pytest.raises(ZweaveError, match="the weights hold NaN"):
        svd(weight)


def test_relative_error_is_in_frobenius_norm():
    weight = matrix((40, 20))
    u, sigma, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    cut = sigma.clone()
    cut[5:] = 0
    expected = (sigma[5:].square().sum() / sigma.square().sum()).sqrt()
    assert relative_error(weight, u.float(), cut.float(), vt.float()) == pytest.approx(
        float(expected), rel=1e-4
    )
    assert relative_error(weight, u.float() * float("nan"), cut.float(), vt.float()) == float("inf")


def test_working_bytes_hold_all_factors():
    assert working_bytes((40, 63)) == working_bytes((63, 40)) > 4 * 40 * (40 + 2 * 63)
