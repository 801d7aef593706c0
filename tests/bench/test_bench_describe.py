"""The benches of descriptions: Mantel's test, and cosines of LoRAs without forming their products."""

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

from zweave.adapters.lora import Lora, LoraPair
from zweave.bench.learning.describe.lora_products import delta_cosines, product_cosines
from zweave.bench.learning.describe.mantel import mantel
from zweave.io.progress import silent


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def test_mantel_tells_what_goes_together_from_what_does_not():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, 5))
    same = mantel(cosines(vectors), cosines(vectors) ** 3, permutations=200)
    assert same.spearman == pytest.approx(1) and same.p == pytest.approx(1 / 201)
    near = mantel(cosines(vectors), cosines(vectors + 0.5 * rng.normal(size=(20, 5))), permutations=200)
    assert 0.3 < near.spearman < 1 and near.p < 0.05
    other = [mantel(cosines(vectors), cosines(rng.normal(size=(20, 5))), permutations=100) for _ in range(8)]
    assert abs(np.mean([one.spearman for one in other])) < 0.15
    assert np.mean([one.p for one in other]) > 0.2


def test_the_diagonal_does_not_count():
    one, other = (cosines(np.random.default_rng(seed).normal(size=(9, 4))) for seed in (1, 2))
    changed = other + np.diag(np.full(9, 7.0))
    assert mantel(one, other, permutations=50) == mantel(one, changed, permutations=50)


def test_cosines_of_loras_are_those_of_their_products():
    generator = torch.Generator().manual_seed(0)

    def lora() -> Lora:
        def pair(m: int, n: int) -> LoraPair:
            a, b = (torch.randn(size, generator=generator) for size in ((3, n), (m, 3)))
            return LoraPair(a, b, scaling=0.5 + torch.rand((), generator=generator).item())

        return Lora({"model.layers.0.mlp.up_proj": pair(7, 5), "model.layers.0.mlp.down_proj": pair(5, 7)})

    loras = [lora() for _ in range(4)]
    products = torch.stack(
        [torch.cat([(p.scaling * p.b @ p.a).flatten() for p in one.pairs.values()]) for one in loras]
    )
    torch.testing.assert_close(product_cosines(loras, silent), delta_cosines(products), rtol=1e-4, atol=1e-5)
