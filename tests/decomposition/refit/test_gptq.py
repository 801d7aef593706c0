"""GPTQ rounds like its definition, and loses less of the outputs than rounding to the nearest."""

import numpy as np
import pytest
import torch

from zweave.decomposition.refit.gptq import gptq, nearest
from zweave.kernels import dequantize, quantize

LIMITS = {"int4": 7, "int8": 127}


def correlated(inputs: int, seed: int = 0) -> torch.Tensor:
    """Second moments of inputs that follow from a few, some of them large."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, max(1, inputs // 4), generator=generator, dtype=torch.float64)
    x = mix @ torch.randn(mix.shape[1], 500, generator=generator, dtype=torch.float64)
    x += 0.1 * torch.randn(inputs, 500, generator=generator, dtype=torch.float64)
    return x @ x.T / 500


def loss(weight: torch.Tensor, rounded: torch.Tensor, moments: torch.Tensor) -> float:
    lost = weight.double() - rounded.double()
    return float(((lost @ moments) * lost).sum())


def by_definition(weight: np.ndarray, moments: np.ndarray, limit: int, group: int) -> np.ndarray:
    """Optimal brain quantisation in a fixed order: after each column the others take the least squares update."""
    left, result = weight.copy(), np.empty_like(weight)
    damped = moments + 0.01 * np.diag(moments).mean() * np.eye(len(moments))
    for column in range(weight.shape[1]):
        if column % group == 0:
            peak = np.abs(left[:, column : column + group]).max(1) / limit
            scale = torch.tensor(peak).half().double().numpy()
        result[:, column] = np.clip(np.round(left[:, column] / scale), -limit, limit) * scale
        inverse = np.linalg.inv(damped[column:, column:])
        lost = (left[:, column] - result[:, column]) / inverse[0, 0]
        left[:, column:] -= np.outer(lost, inverse[0])
    return result


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("shape", [(5, 24), (3, 7), (1, 1)])
def test_columns_are_updated_as_defined(shape: tuple[int, int], format: str) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moments = correlated(shape[1])
    found = gptq(weight, moments, format, group=8)
    expected = by_definition(weight.numpy(), moments.numpy(), LIMITS[format], 8)
    torch.testing.assert_close(dequantize(found).double(), torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("format", ["int4", "int8"])
def test_correlated_inputs_gain(format: str) -> None:
    weight = torch.randn(40, 150, generator=torch.Generator().manual_seed(2))
    moments = correlated(150)
    losses = [
        loss(weight, dequantize(one), moments)
        for one in (gptq(weight, moments, format), nearest(weight, format))
    ]
    assert losses[0] < 0.5 * losses[1]


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    weight = torch.randn(6, 130, generator=torch.Generator().manual_seed(3))
    found, expected = gptq(weight, torch.eye(130), "int8"), nearest(weight, "int8")
    assert torch.equal(found.data, expected.data) and torch.equal(found.scale, expected.scale)
    # The same as the kernels' own rounding but for scales that sixteen bits hold.
    plain = quantize(weight, "int8", 32)
    torch.testing.assert_close(dequantize(found), dequantize(plain), rtol=0, atol=float(found.scale.max()))


def test_zero_weights_and_unseen_inputs() -> None:
    assert not dequantize(gptq(torch.zeros(3, 70), correlated(70), "int8")).any()
    weight = torch.randn(3, 70, generator=torch.Generator().manual_seed(4))
    found = gptq(weight, torch.zeros(70, 70), "int8")
    assert torch.equal(found.data, nearest(weight, "int8").data)
