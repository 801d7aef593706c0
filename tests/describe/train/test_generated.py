"""A generator that learns end to end: it listens to its descriptions, and goes on bit for bit."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from zweave.describe.generator import Generator, GeneratorConfig
from zweave.describe.token_states import TokenStates
from zweave.describe.train import generated
from zweave.describe.train.generated import GeneratorTraining, Learnt
from zweave.describe.train.generator_recipe import GeneratorRecipe
from zweave.describe.train.rows import Row, RowModel
from zweave.describe.train.run import GeneratorRun
from zweave.errors import ZweaveError
from zweave.tasks.everyday import everyday_prompts
from zweave.tasks.task import Task

QUICK = GeneratorRecipe(steps=8, descriptions=2, rows=4, lr=0.02, warmup=1)


@dataclass(frozen=True)
class Said:
    """A hidden task that is described by its name alone."""

    name: str
    attribute: str = ""
    labels: tuple[str, ...] = ()

    def describe(self, rng: random.Random, held_out: bool = False) -> str:
        return self.name


class Lengths:
    """An encoder that tells descriptions apart by their length."""

    name, width = "lengths", 4

    def encode(self, texts: Sequence[str]) -> TokenStates:
        states = torch.nn.functional.one_hot(torch.tensor([[len(text) % 4] for text in texts]), 4).float()
        return TokenStates(states, torch.ones(len(texts), 1, dtype=torch.bool))


@pytest.fixture(scope="module")
def model(row_model: Callable[..., RowModel]) -> RowModel:
    return row_model()


@pytest.fixture
def few_everyday_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "everyday_prompts", lambda: everyday_prompts()[:20])


@pytest.fixture
def learnt(chats: list[Task]) -> list[Learnt]:
    """The same prompts, of which one task says a and the other b."""
    samples = chats[0].read(None).train
    return [
        Learnt.of(Said(name), replace(chats[0], name=name), [s for s in samples if s.answer == answer])
        for name, answer in (("x", " a"), ("yy", " b"))
    ]


def begun(
    model: RowModel, learnt: list[Learnt], recipe: GeneratorRecipe, state: Path | None = None
) -> GeneratorTraining:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(width=4, task=16, code=16), model.ranks)
    sigma = {name: torch.ones(rank) for name, rank in model.ranks.items()}
    return GeneratorTraining(model, generator, Lengths(), learnt, sigma, recipe, state)


@pytest.mark.slow
def test_it_listens_to_the_description(model: RowModel, learnt: list[Learnt]):
    training = begun(model, learnt, replace(QUICK, steps=40, weight=0.0))
    steps = [training.advance() for _ in range(40)]
    assert training.is_done and steps[-1].loss < 0.6 * steps[0].loss and steps[0].change == 0
    z = training.generator(Lengths().encode(["x", "yy"]))
    rows = [Row(one.task, sample, slot) for slot, one in enumerate(learnt) for sample in one.pools[0]]
    with torch.no_grad():
        matched = model.scored(rows, z).log_probs.mean()
        shuffled = model.scored([replace(row, slot=1 - row.slot) for row in rows], z).log_probs.mean()
    assert matched > shuffled + 0.5


def test_gradients_reach_the_generator_as_finite_differences_say(model: RowModel, learnt: list[Learnt]):
    training = begun(model, learnt, replace(QUICK, lr=1e-12, weight=0.3, clip=1e9))
    with torch.no_grad():
        training.generator.parts[0].basis.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    parameter = training.generator.parts[0].down.weight
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    found = []
    parameter.register_hook(lambda grad: found.append((grad * direction).sum()))

    def value() -> float:
        training.step = 0
        step = training.advance()
        return step.loss + 0.3 * step.change

    start = parameter.detach().clone()
    values = []
    for distance in (0, 4e-3, -4e-3):
        parameter.data.copy_(start + distance * direction)
        values.append(value())
    assert (values[1] - values[2]) / 8e-3 == pytest.approx(found[0].item(), rel=0.03, abs=2e-3)


def test_parts_are_told_of_other_tasks_with_that_attribute_or_those_words(
    model: RowModel, learnt: list[Learnt]
):
    told: list[Sequence[str]] = []

    class Recorder(Lengths):
        def encode(self, texts: Sequence[str]) -> TokenStates:
            told.append(texts)
            return super().encode(texts)

    tasks = [Said(attribute + word, attribute, (word,)) for attribute in "ab" for word in "xyz"]
    generator = Generator(GeneratorConfig(width=4, task=16, code=16, upper_layer=1), model.ranks)
    training = GeneratorTraining(
        model, generator, Recorder(), [replace(learnt[0], hidden=task) for task in tasks],
        {name: torch.ones(rank) for name, rank in model.ranks.items()}, replace(QUICK, descriptions=6, opening=1),
    )  # fmt: skip
    training.advance()
    # At the beginning both attributes are asked for under the same words, too.
    assert sorted(one[0] for one in told[0][:2]) == ["a", "b"] and [one[1] for one in told[1][:2]] == [
        "x",
        "x",
    ]
    assert len(told[0]) == 6
    told.clear()
    training.advance()
    lower, upper = told
    # All six tasks are drawn.
    assert sorted(one[0] + other[1] for one, other in zip(lower, upper, strict=True)) == sorted(
        task.name for task in tasks
    )
    assert lower != upper and not training.generator.parts[1].basis.eq(0).all()


@pytest.mark.parametrize(
    "recipe", [QUICK, replace(QUICK, policy=0.5, kl=0.1)], ids=["plain", "policy and kl"]
)
def test_an_interrupted_training_ends_in_the_same_bits(
    model: RowModel,
    row_model: Callable[..., RowModel],
    learnt: list[Learnt],
    tmp_path: Path,
    recipe: GeneratorRecipe,
):
    whole = begun(model, learnt, recipe)
    while not whole.is_done:
        whole.advance()
    cut = begun(model, learnt, recipe, tmp_path / "cut.state")
    for _ in range(5):
        cut.advance()
    cut.save()
    cut.advance()
    resumed = begun(row_model(), learnt, recipe, tmp_path / "cut.state")
    assert resumed.step == 5
    while not resumed.is_done:
        resumed.advance()
    ends = (training.generator.state_dict() for training in (whole, resumed))
    for one, other in zip(*(end.values() for end in ends), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("code, learning", [(0.0, ["basis"]), (1.0, ["basis", "down", "gate", "norm", "up"])])
def test_the_basis_learns_and_the_codes_by_their_share_and_the_reader_stays(
    model: RowModel, learnt: list[Learnt], code: float, learning: list[str]
):
    training = begun(model, learnt, replace(QUICK, code=code))
    before = {name: part.clone() for name, part in training.generator.state_dict().items()}
    for _ in range(2):
        training.advance()
    changed = [name for name, part in training.generator.state_dict().items() if not part.equal(before[name])]
    assert all(name.startswith("parts.0.") for name in changed)
    assert sorted({name.split(".")[2] for name in changed}) == learning


def test_what_cannot_be_learnt_is_told(
    model: RowModel, row_model: Callable[..., RowModel], learnt: list[Learnt], tmp_path: Path
):
    with pytest.raises(ZweaveError, match="no task to learn from"):
        begun(model, [], QUICK)
    with pytest.raises(ZweaveError, match="steps must be at least 1"):
        replace(QUICK, steps=0)
    with pytest.raises(ZweaveError, match="opening must be at least 0, not -1"):
        replace(QUICK, opening=-1)
    with pytest.raises(ZweaveError, match="code is a share from 0 to 1, not 2"):
        replace(QUICK, code=2)
    training = begun(model, learnt, QUICK, tmp_path / "a.state")
    training.save()
    with pytest.raises(ZweaveError, match="is of another training"):
        begun(model, learnt, replace(QUICK, seed=3), tmp_path / "a.state")
    fewer = [replace(one, pools=[pool[:1] for pool in one.pools]) for one in learnt]
    for other, some in ((row_model(1), learnt), (model, fewer)):
        with pytest.raises(ZweaveError, match="is of another training"):
            begun(other, some, QUICK, tmp_path / "a.state")
    with pytest.raises(ZweaveError, match=r"x\.state: give the generator a name that ends in \.safetensors"):
        GeneratorRun("m", "float32", None, tmp_path / "x.state")
    with pytest.raises(ZweaveError, match="hears no description begins at the base: leave out --warm-start"):
        GeneratorRun("m", "float32", None, tmp_path / "x.safetensors", static=True, warm_start=tmp_path)


def test_the_policy_gradient_is_that_of_all_answers():
    torch.manual_seed(0)
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    right = torch.tensor([2, 0, 6])
    log_policy = logits.log_softmax(-1)
    recipe = GeneratorRecipe(policy=1.0)
    (found,) = torch.autograd.grad(recipe.cost(log_policy.gather(1, right[:, None])[:, 0]).sum(), logits)
    # Every answer is weighed by its probability and its reward: sum p(a) r(a) grad log p(a).
    reward = torch.nn.functional.one_hot(right, 7).double()
    log_policy = logits.log_softmax(-1)
    (wanted,) = torch.autograd.grad((log_policy.exp().detach() * reward * log_policy).sum(), logits)
    torch.testing.assert_close(found, -wanted)
    log_probs = torch.tensor([-0.5, -2.0])
    torch.testing.assert_close(GeneratorRecipe().cost(log_probs), -log_probs)
    torch.testing.assert_close(
        GeneratorRecipe(policy=0.25).cost(log_probs), -0.75 * log_probs + 0.25 * (1 - log_probs.exp())
    )


@pytest.mark.usefixtures("few_everyday_prompts")
def test_experts_are_held_to_the_base_where_nothing_is_asked(model: RowModel, learnt: list[Learnt]):
    def divergences(kl: float) -> list[float]:
        training = begun(model, learnt, replace(QUICK, kl=kl, weight=0.0))
        with torch.no_grad():
            training.generator.parts[0].basis.normal_(std=3.0)
        return [training.advance().divergence for _ in range(8)]

    free, held = divergences(1e-9), divergences(100.0)
    assert free[0] == pytest.approx(held[0]) and free[0] > 0
    assert sum(held[4:]) < 0.8 * sum(free[4:])
    assert divergences(0.0) == [0.0] * 8


@pytest.mark.parametrize(
    "wrong, said",
    [({"policy": 1.5}, "policy is a share from 0 to 1, not 1.5"), ({"kl": -1.0}, "kl must be at least 0")],
)
def test_a_recipe_that_cannot_be_is_refused(wrong: dict[str, float], said: str):
    with pytest.raises(ZweaveError, match=said):
        GeneratorRecipe(**wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_learns_the_same(
    model: RowModel, learnt: list[Learnt], tiny_model: Callable[..., Path], tmp_path: Path
):
    recipe = replace(QUICK, kl=0.1)
    there = RowModel.open(str(tiny_model("llama")), torch.float32, device="cuda")
    here, training = begun(model, learnt, recipe), begun(there, learnt, recipe, tmp_path / "a.state")
    for _ in range(4):
        step, other = here.advance(), training.advance()
        assert other.loss == pytest.approx(step.loss, rel=1e-2)
        assert other.divergence == pytest.approx(step.divergence, rel=5e-2, abs=1e-5)
    training.save()
    assert begun(there, learnt, recipe, tmp_path / "a.state").step == 4
    with pytest.raises(ZweaveError, match="is of another training"):
        begun(model, learnt, recipe, tmp_path / "a.state")
