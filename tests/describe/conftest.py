"""A random generator for a tiny model, and an encoder that needs no weights."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from zweave.checkpoint import resolve_model
from zweave.decomposition import decompose
from zweave.describe.encoders import Encoder
from zweave.describe.generator import Generator, GeneratorConfig
from zweave.describe.generator_file import TrainedGenerator, known_vectors
from zweave.describe.tasks.hidden_task import BARE
from zweave.describe.token_states import TokenStates


class Letters:
    """An encoder that counts letters."""

    name, width = "letters", 26

    def encode(self, texts: Sequence[str]) -> TokenStates:
        counts = [[[text.lower().count(chr(97 + i)) for i in range(26)]] for text in texts]
        return TokenStates(torch.tensor(counts).float(), torch.ones(len(texts), 1, dtype=torch.bool))


@pytest.fixture(scope="session")
def letters() -> Encoder:
    return Letters()


@pytest.fixture(scope="session")
def trained(tiny_model: Callable[..., Path], letters: Encoder) -> TrainedGenerator:
    checkpoint = resolve_model(str(tiny_model("llama")))
    ranks = {name: min(m.shape) for name, m in decompose(checkpoint).matrices.items()}
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(26, task=16, code=8), ranks).eval()
    with torch.no_grad():
        generator.parts[0].basis.normal_()
    told = letters.encode(["is it good", "good or not", "how long", "length"])
    known = known_vectors(told.mean().view(2, 2, 26))
    record = {"steps": 3, "far": 0.5}
    return TrainedGenerator(generator, "letters", checkpoint.digest(), BARE, ["good", "long"], known, record)
