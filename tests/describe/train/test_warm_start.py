"""A generator that begins near experts of single tasks."""

import random
from dataclasses import dataclass

import pytest
import torch

from zweave.describe.encoders import Encoder
from zweave.describe.generator import Generator, GeneratorConfig
from zweave.describe.train.warm_start import experts_of, warm_start
from zweave.describe.trained_experts import TrainedExperts
from zweave.errors import ZweaveError
from zweave.experts import Expert

RANKS = {f"model.layers.{layer}.mlp.{name}_proj": 12 for layer in (0, 1) for name in ("up", "down")}
SIGMA = {name: torch.linspace(2, 0.1, rank) for name, rank in RANKS.items()}


@dataclass(frozen=True)
class Said:
    name: str

    def describe(self, rng: random.Random, held_out: bool = False) -> str:
        return self.name * rng.randint(1, 2)


def expert(seed: int, modules: list[str]) -> Expert:
    generator = torch.Generator().manual_seed(seed)
    return Expert({name: 1 + 0.1 * torch.randn(RANKS.get(name, 12), generator=generator) for name in modules})


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(GeneratorConfig(26, task=16, code=8, upper_layer=1), RANKS)


def test_descriptions_make_the_experts_of_their_tasks(generator: Generator, letters: Encoder):
    # The second expert leaves a matrix as it is.
    own = TrainedExperts({"aaa": expert(0, list(RANKS)), "zq": expert(1, list(RANKS)[1:])})
    reader = {name: part.clone() for name, part in generator.reader.state_dict().items()}
    tasks = [Said("aaa"), Said("zq"), Said("has no expert")]
    losses = warm_start(generator, letters, tasks, experts_of(tasks, own, RANKS), SIGMA, steps=150)
    assert losses[0] == pytest.approx(1.0) and losses[-1] < 0.3
    made = generator(letters.encode(["aaa", "zq"]))
    for module, rank in RANKS.items():
        first, second = (one.z.get(module, torch.ones(rank)) for one in own.experts.values())
        near, far = (
            (made[module] - z) * SIGMA[module]
            for z in (torch.stack([first, second]), torch.stack([second, first]))
        )
        assert (near.norm(dim=1) < 0.6 * far.norm(dim=1)).all()
    assert all(torch.equal(part, reader[name]) for name, part in generator.reader.state_dict().items())


def test_what_cannot_be_begun_near_is_told():
    trained = TrainedExperts({name: expert(0, list(RANKS)) for name in ("a", "c")})
    assert list(experts_of([Said("b"), Said("c")], trained, RANKS).experts) == ["c"]
    with pytest.raises(ZweaveError, match="none of the experts to begin near is of a task that is learnt"):
        experts_of([Said("b")], trained, RANKS)
    foreign = TrainedExperts({"a": expert(0, ["model.layers.2.mlp.up_proj"])})
    with pytest.raises(ZweaveError, match=r"changes model\.layers\.2\.mlp\.up_proj, which"):
        experts_of([Said("a")], foreign, RANKS)
