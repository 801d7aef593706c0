"""The solver of an accelerator, run on CPU tensors: within the CPU's error bound, of the same form and signs."""

import pytest
import torch

from zweave.checkpoint import Checkpoint
from zweave.decomposition.solver import ON_CPU, Solver, on_device
from zweave.decomposition.svd import Svd
from zweave.errors import ZweaveError

STAND_IN = on_device(torch.device("cpu"))


def matrix(shape, rank=None):
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    if rank is None:
        return torch.randn(shape, generator=generator)
    return torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)


def conditioned(condition):
    """[90, 60] with singular values that fall evenly from 1 to 1 / condition."""
    u, _ = torch.linalg.qr(matrix((90, 60)).double())
    v, _ = torch.linalg.qr(matrix((60, 60)).double())
    sigma = torch.logspace(0, -float(torch.tensor(condition).log10()), 60, dtype=torch.float64)
    return ((u * sigma) @ v).float()


MATRICES = {
    "square": matrix((63, 63)),
    "tall": matrix((199, 20)),
    "wide": matrix((20, 199)),
    "one row": matrix((1, 40)),
    "one column": matrix((40, 1)),
    "rank 7": matrix((90, 60), 7),
    "zero": torch.zeros(12, 30),
    "bfloat16": matrix((40, 63)).bfloat16(),
    "condition 1e4": conditioned(1e4),
    "condition 1e10": conditioned(1e10),
}


def assert_like_the_cpus(found, expected, weight):
    """Both are sound, sigma agrees, and so do the vectors wherever the gaps between singular values fix them."""
    weight, scale = weight.double(), float(expected.sigma[0])
    for factor, other in ((found.u, expected.u), (found.sigma, expected.sigma), (found.vt, expected.vt)):
        assert factor.shape == other.shape and factor.dtype == torch.float32
        assert factor.is_contiguous() and factor.device.type == "cpu"
    u, sigma, vt = found.u.double(), found.sigma.double(), found.vt.double()
    rest = float(((u * sigma) @ vt - weight).norm())
    assert rest <= 2e-6 * float(weight.norm())
    assert found.error == pytest.approx(rest / max(float(weight.norm()), 1e-30), abs=1e-7)
    eye = torch.eye(len(sigma), dtype=torch.float64)
    torch.testing.assert_close(u.T @ u, eye, rtol=0, atol=3e-6)
    torch.testing.assert_close(vt @ vt.T, eye, rtol=0, atol=3e-6)
    assert (found.sigma.diff() <= 0).all() and (found.sigma >= 0).all()
    assert (found.vt.gather(1, found.vt.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(found.sigma, expected.sigma, rtol=0, atol=3e-6 * scale)
    gaps = torch.full((len(sigma),), float("inf"), dtype=torch.float64)
    gaps[1:] = sigma[:-1] - sigma[1:]
    gaps[:-1] = torch.minimum(gaps[:-1], gaps[1:])
    apart = (gaps > 1e-2 * scale) & (sigma > 1e-2 * scale)
    cosines = (found.vt * expected.vt).sum(1).abs()
    assert (cosines[apart] > 0.9999).all()


@pytest.mark.parametrize("name", MATRICES)
def test_factors_are_like_the_cpus(name):
    weight = MATRICES[name]
    before = weight.clone()
    found = STAND_IN.solve(weight)
    assert_like_the_cpus(found, ON_CPU.solve(weight), weight)
    assert found.driver == "gram64" and torch.equal(weight, before)


def test_where_the_gram_matrix_fails_an_svd_follows():
    def failing(tall):
        raise torch.linalg.LinAlgError("did not converge")

    solver = Solver(STAND_IN.device, [("gram64", failing), STAND_IN.drivers[1]], STAND_IN.precision)
    weight = MATRICES["tall"]
    found = solver.solve(weight)
    assert found.driver == "svd64"
    assert_like_the_cpus(found, ON_CPU.solve(weight), weight)


@pytest.mark.parametrize(
    "maker, checker", [(ON_CPU, STAND_IN), (STAND_IN, ON_CPU)], ids=["cpu's", "device's"]
)
def test_the_factors_of_one_pass_the_check_of_the_other(maker, checker):
    weight = MATRICES["wide"]
    found = maker.solve(weight)
    kept = checker.check(weight, found)
    assert kept and kept.u is found.u and kept.error < 5e-6
    assert checker.check(weight + 1e-3, found) is None
    assert checker.check(weight, Svd(found.u * float("nan"), found.sigma, found.vt, 0.0, "x")) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
        RuntimeError("CUSOLVER_STATUS_ALLOC_FAILED"),
    ],
    ids=["allocator", "library"],
)
def test_a_full_device_is_one_clear_line(error):
    def full(tall):
        raise error

    solver = Solver(STAND_IN.device, [("full", full)], STAND_IN.precision)
    with pytest.raises(ZweaveError, match=r"out of memory: 20 x 199 takes about .* device='cpu'") as raised:
        solver.solve(MATRICES["wide"])
    assert "\n" not in str(raised.value)


def test_other_faults_are_not_taken_for_a_full_device():
    def faulty(tall):
        raise RuntimeError("illegal memory access")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        Solver(STAND_IN.device, [("faulty", faulty)], STAND_IN.precision).solve(MATRICES["wide"])


@pytest.mark.slow
def test_real_matrices(smollm2):
    checkpoint = Checkpoint(smollm2)
    for module in checkpoint.adapted_shapes():
        if ".layers.0." in module or ".layers.29." in module:
            weight = checkpoint.tensor(f"{module}.weight")
            found = STAND_IN.solve(weight)
            assert found.driver == "gram64"
            assert_like_the_cpus(found, ON_CPU.solve(weight), weight)
