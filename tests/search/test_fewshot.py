"""Few-shot mixing: the cross-entropy method, what a population's fitness is, and `zweave expert search`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from zweave import Engine, Request
from zweave.checkpoint.module_name import layer_of
from zweave.cli.main import main
from zweave.errors import ZweaveError
from zweave.evaluation import ExpertMethod
from zweave.experts import Expert
from zweave.search.cem import Cem, CemConfig
from zweave.search.few_shot import Weighting, _likelihood, population_fitness, search
from zweave.tasks import Sample, Splits, Task
from zweave.text import PromptTemplate

TinyEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def engine(tiny_engine: TinyEngine) -> Engine:
    return tiny_engine()


@pytest.fixture(scope="module")
def task(engine: Engine) -> Task:
    """The right answers are those of a mixture that leans to "b"."""
    hidden = ExpertMethod("hidden", engine, {"a": 0.2, "b": 0.8})
    prompts = [Sample(f"{'go ' * (i % 5)}{i}", "") for i in range(24)]
    blank = Task("blank", "", lambda _: Splits([], []), max_tokens=2)
    answers = hidden.answers(blank, prompts)
    samples = [Sample(p.prompt, answer) for p, answer in zip(prompts, answers, strict=True)]
    return Task("mine", "", lambda _: Splits(samples, [Sample("z", "z")]), max_tokens=2, validation=1)


@pytest.mark.parametrize("seed", range(3))
def test_cem_finds_a_maximum_within_the_bounds(seed: int) -> None:
    goal = np.array([0.3, 0.9, 1.4])
    cem = Cem(CemConfig(population=40, generations=25, seed=seed), np.full(3, 0.5))
    before = -np.inf
    for _ in range(25):
        asked = cem.ask()
        assert asked.min() >= 0 and asked.max() <= 1
        cem.tell([(-float(((row - goal) ** 2).sum()), 0.0) for row in asked])
        assert cem.best_fitness[0] >= before
        before = cem.best_fitness[0]
    np.testing.assert_allclose(cem.best, [0.3, 0.9, 1.0], atol=0.03)


def test_cem_breaks_ties_by_the_second_number_and_keeps_the_best() -> None:
    guesses = [np.array([0.1, 0.2]), np.array([0.6, 0.7])]
    cem = Cem(CemConfig(population=10), np.full(2, 0.5), guesses)
    asked = cem.ask()
    np.testing.assert_array_equal(asked[:3], [[0.5, 0.5], *guesses])
    cem.tell([(1.0, -float(index != 2)) for index in range(10)])
    np.testing.assert_array_equal(cem.best, guesses[1])
    asked = cem.ask()
    np.testing.assert_array_equal(asked[0], guesses[1])
    cem.tell([(0.5, 0.0)] * 10)
    assert cem.best_fitness == (1.0, 0.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: CemConfig(population=9),
            "population 9 is too small: the best 20% of it must be two .* make it 10 at",
        ),
        (lambda: CemConfig(low=1.0), "low must be below high"),
        (lambda: Cem(CemConfig(population=10), np.zeros(1), [np.zeros(1)] * 10), "cannot hold 10 guesses"),
        (lambda: Weighting(("a",)), "two experts or more"),
    ],
)
def test_what_cannot_be_searched(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ZweaveError, match=words):
        make()


def test_weights() -> None:
    vector = np.array([0.2, 0.0, 0.6, 0.0])
    weighting = Weighting(("a", "b"), layers=2)
    np.testing.assert_allclose(weighting.weights(vector), [[0.25, 0.5], [0.75, 0.5]])
    assert weighting.mixture(weighting.singles()[1]) == {"a": (0.0, 0.0), "b": (1.0, 1.0)}
    free = Weighting(("a", "b"), normalised=False)
    assert free.mixture(np.array([0.9, 0.8])) == {"a": 0.9, "b": 0.8}
    assert Weighting(("a", "b", "c", "d")).mixture(Weighting(("a", "b", "c", "d")).uniform())["c"] == 0.25


def test_a_populations_fitness_is_each_candidates_own(engine: Engine, task: Task) -> None:
    shots = task.samples("train")
    choices = [{"a": 0.2, "b": 0.8}, "a", {"a": [0.3, 0.5], "b": [0.7, 0.1]}]
    for choice, (share, likelihood) in zip(
        choices, population_fitness(engine, task, shots, choices), strict=True
    ):
        right, likelihoods = 0, []
        for shot in shots:
            (result,) = engine.generate(Request(shot.prompt, expert=choice, max_tokens=2, logprobs=0))
            p = np.exp(sum(token.logprob for token in result.logprobs))
            is_right = "".join(result.text.split()) == "".join(shot.answer.split())
            right += is_right
            likelihoods.append(np.log(p if is_right else 1 - p))
        assert share == right / len(shots)
        assert likelihood == pytest.approx(np.mean(likelihoods))


def test_a_wrong_answer_that_was_certain_stays_comparable(engine: Engine) -> None:
    (result,) = engine.generate(Request("go", max_tokens=1, logprobs=0))
    certain = replace(result, logprobs=(replace(result.logprobs[0], logprob=0.0),))
    assert -25 < _likelihood(False, certain) < -15 and _likelihood(True, certain) == 0


@pytest.mark.parametrize("layers", [1, 2], ids=["global", "per layer"])
@pytest.mark.parametrize("normalised", [True, False], ids=["normalised", "free"])
def test_search_is_no_worse_than_any_expert_alone(
    engine: Engine, task: Task, layers: int, normalised: bool
) -> None:
    shots = task.samples("train")
    reports: list[float] = []
    config = CemConfig(population=16, generations=5)
    weighting = Weighting(("a", "b"), layers, normalised)
    found = search(engine, task, shots, weighting, config, lambda g: reports.append(g.share))
    alone = {name: population_fitness(engine, task, shots, [name])[0][0] for name in ("a", "b")}
    assert found.singles == alone
    assert found.searched == reports[-1] and reports == sorted(reports) and len(reports) == 5
    # What is found is a mixture that gains more than a standard error, or the best expert.
    best = max(alone.values())
    error = (best * (1 - best) / len(shots)) ** 0.5
    assert found.share == (found.searched if found.searched > best + error else best)
    assert population_fitness(engine, task, shots, [found.mixture])[0][0] == found.share
    if normalised and layers == 1:
        # The rule is a mixture that no expert alone is.
        assert found.share == found.searched > best
        assert sum(found.mixture.values()) == pytest.approx(1)


def test_a_mixture_that_gains_little_gives_way_to_the_best_expert(
    engine: Engine, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitness(_: Engine, task: Task, shots: list[Sample], choices: list) -> list[tuple[float, float]]:
        """ "b" alone answers 8 of 16 shots, any mixture as many as `hits` says."""
        return [
            (0.5 if c == {"a": 0, "b": 1} else 0.25 if c == {"a": 1, "b": 0} else hits / 16, 0)
            for c in choices
        ]

    monkeypatch.setattr("zweave.search.few_shot.population_fitness", fitness)
    shots, config = task.samples("train")[:16], CemConfig(population=10, generations=2)
    # A standard error of 8 of 16 is 2 of 16.
    for hits, mixes in ((4, False), (8, False), (10, False), (11, True)):
        found = search(engine, task, shots, Weighting(("a", "b")), config)
        assert (found.mixture != {"a": 0, "b": 1}) == mixes
        assert found.share == max(8, hits if mixes else 0) / 16 and found.searched == max(8, hits) / 16
        assert found.singles == {"a": 0.25, "b": 0.5}


def test_the_best_so_far_is_not_asked_again(
    engine: Engine, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots, asked = task.samples("train"), []

    def counted(engine: Engine, task: Task, shots: list[Sample], choices: list) -> list[tuple[float, float]]:
        asked.append(len(choices))
        return population_fitness(engine, task, shots, choices)

    monkeypatch.setattr("zweave.search.few_shot.population_fitness", counted)
    search(engine, task, shots, Weighting(("a", "b")), CemConfig(population=10, generations=3))
    assert asked == [10, 9, 9]


@pytest.fixture
def files(tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Two experts and a task."""
    model = str(tiny_model("llama"))
    paths = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    for seed, path in enumerate(paths):
        assert main(["expert", "new", path, "--random", "0.3", "--seed", str(seed), "--model", model]) == 0
    lines = [{"labels": ["x", "y"]}, *({"prompt": f"{i} is", "answer": "xy"[i % 2]} for i in range(50))]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, lines)))
    capsys.readouterr()
    return [str(tmp_path / "task.jsonl"), *paths, model]


@pytest.mark.parametrize("options", [[], ["--per-layer", "--free"]], ids=["global", "per layer"])
def test_the_command_writes_the_mixture(
    files: list[str], options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, a, b, model = files
    out = tmp_path / "out.safetensors"
    command = [
        "expert",
        "search",
        task,
        "--experts",
        a,
        b,
        "--out",
        str(out),
        "--model",
        model,
        "--shots",
        "4",
    ]
    sizes = ["--population", "10", "--generations", "2", "--dtype", "float32"]
    assert main([*command, *sizes, *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    expert, parts = Expert.load(out), [Expert.load(Path(path)) for path in (a, b)]
    weights = [np.broadcast_to(printed["mixture"][path], 2) for path in (a, b)]
    for module, z in expert.z.items():
        layer = layer_of(module)
        expected = sum(w[layer] * part.z[module].double() for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(z.double(), expected, rtol=1e-6, atol=1e-6)
    assert expert.prompt_template == PromptTemplate("{text} is", labels=("x", "y"), max_tokens=1, chat=False)
    assert expert.training["search"]["task"] == "task" and expert.base_digest == parts[0].base_digest
    assert main([*command, *sizes, *options, "--overwrite"]) == 0
    assert f"{out}: " in capsys.readouterr().out


def test_the_command_says_what_is_wrong(
    files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, a, b, model = files
    assert main(["expert", "search", task, "--experts", a, "--out", "x", "--model", model]) == 1
    assert "two experts or more" in capsys.readouterr().err
    assert main(["expert", "search", task, "--experts", a, b, "--out", "/none/x", "--model", model]) == 1
    assert "no directory /none" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.delattr("zweave.cli.expert_search.open_engine")
        assert main(["expert", "search", task, "--experts", a, "nobody", "--out", "x", "--model", model]) == 1
    assert "there is no expert 'nobody'" in capsys.readouterr().err
    common = ["expert", "search", task, "--experts", a, b, "--out", "x", "--model", model]
    assert main([*common, "--population", "8"]) == 1
    assert (
        "population 8 is too small" in (error := capsys.readouterr().err) and "make it 10 at least" in error
    )
