"""The benches of descriptions: Mantel's test, and cosines of LoRAs without forming their products."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

from zweave.adapters.lora import Lora, LoraPair
from zweave.bench.learning.describe.lora_products import delta_cosines, product_cosines
from zweave.bench.learning.describe.mantel import mantel
from zweave.checkpoint import resolve_model
from zweave.cli.main import main
from zweave.describe import describer
from zweave.describe.generator import Generator, GeneratorConfig
from zweave.describe.generator_file import TrainedGenerator
from zweave.describe.tasks.hidden_task import BARE
from zweave.describe.token_states import TokenStates
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


class Lengths:
    """An encoder that needs no weights."""

    name, width = "lengths", 8

    def encode(self, texts: list[str]) -> TokenStates:
        states = torch.nn.functional.one_hot(torch.tensor([[len(text) % 8] for text in texts]), 8).float()
        return TokenStates(states, torch.ones(len(texts), 1, dtype=torch.bool))


def test_descriptions(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    checkpoint = resolve_model(str(tiny_model("llama")))
    ranks = {name: min(shape) for name, shape in checkpoint.config.adapted_shapes().items()}
    generator = Generator(GeneratorConfig(8, task=16, code=8), ranks)
    torch.nn.init.normal_(generator.parts[0].basis)
    file = tmp_path / "g.safetensors"
    TrainedGenerator(
        generator, "lengths", checkpoint.digest(), BARE, ["positive-red-blue"], torch.ones(1, 8)
    ).save(file)
    monkeypatch.setattr(describer, "open_encoder", lambda name, model: Lengths())
    sizes = ["--requests", "3", "--prompt", "9", "--new", "2", "--rounds", "1", "--dtype", "float32"]
    command = ["bench", "descriptions", "--model", str(checkpoint.directory), "--generator", str(file)]
    assert main([*command, *sizes]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["provider"], row["state"], row["descriptions"]) for row in rows] == [
        ("expert", "new", 1),
        ("first token", "known", 1),
        ("first token", "new", 1),
        ("batch", "known", 1),
        ("batch", "known", 3),
        ("batch", "new", 3),
    ]
    assert all(row["tok_s"] > 0 for row in rows[3:]) and rows[1]["later"] == 0
