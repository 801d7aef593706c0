"""A random generator for a tiny model, and an encoder that needs no weights."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zweave.checkpoint import resolve_model
from zweave.decomposition import decompose
from zweave.describe.encoders import Encoder
from zweave.describe.generator import Generator, GeneratorConfig
from zweave.describe.generator_file import TrainedGenerator, known_vectors
from zweave.describe.tasks.hidden_task import BARE


class Letters:
    """An encoder that counts letters."""

    name, width = "letters", 26

    def encode(self, texts: Sequence[str]) -> Tensor:
        counts = [[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(counts).float(), dim=-1)


@pytest.fixture(scope="session")
def letters() -> Encoder:
    return Letters()


@pytest.fixture(scope="session")
def trained(tiny_model: Callable[..., Path], letters: Encoder) -> TrainedGenerator:
    checkpoint = resolve_model(str(tiny_model("llama")))
    ranks = {name: min(m.shape) for name, m in decompose(checkpoint).matrices.items()}
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(26, hidden=16, head=16), ranks).eval()
    with torch.no_grad():
        for head in generator.heads.children():
            head.weight.normal_()
    told = letters.encode(["is it good", "good or not", "how long", "length"])
    known = known_vectors(told.view(2, 2, 26))
    record = {"steps": 3, "far": 0.5}
    return TrainedGenerator(generator, "letters", checkpoint.digest(), BARE, ["good", "long"], known, record)
