"""Evaluation: what methods answer, what baselines compute, what a row says, and `zweave eval`."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from zweave import Engine, Request
from zweave.cli.main import main
from zweave.errors import ZweaveError
from zweave.evaluation import ExpertMethod, LabelScores, Row, answer_together, baselines, evaluate, markdown
from zweave.evaluation.baselines import Baselines, Calibrated, Majority, Regression, Restricted
from zweave.evaluation.evaluate import interval, standard_error
from zweave.evaluation.label_scores import LabelScores as Scores
from zweave.evaluation.table import print_cells, row_cells
from zweave.experts import Expert
from zweave.tasks import Sample, Splits, Task, label_tokens

TinyEngine = Callable[..., Engine]
CHOICES = [None, "a", {"a": 0.5, "b": 0.5}, "late"]


def make_task(labels: tuple[str, ...] = ("x", "y"), **fields: object) -> Task:
    """Prompts of all lengths; the answer says whether the number in it is even."""
    found = [Sample(f"{'word ' * (i % 7)}{i}", ("x", "y")[i % 2]) for i in range(60)]
    return Task("mine", "", lambda _: Splits(found[20:], found[:20]), labels, **fields)


class Fixed(Scores):
    """Label scores that are known: for the baselines' own arithmetic."""

    def __init__(self, rows: dict[str, list[float]]) -> None:
        self._rows = rows

    def of(self, task: Task, samples: list[Sample]) -> np.ndarray:
        return np.array([self._rows[sample.prompt] for sample in samples])


@pytest.fixture(scope="module")
def engine(tiny_engine: TinyEngine) -> Engine:
    return tiny_engine()


def test_experts_that_answer_together_answer_as_alone(engine: Engine) -> None:
    task = make_task(labels=(), max_tokens=3)
    samples = task.samples("test")
    together = answer_together(engine, task, samples, CHOICES)
    for choice, results in zip(CHOICES, together, strict=True):
        assert ExpertMethod("m", engine, choice).answers(task, samples) == [result.text for result in results]
        (alone,) = engine.generate(Request(samples[7].prompt, expert=choice, max_tokens=3))
        assert alone == results[7]
    assert len({tuple(result.text for result in results) for results in together}) > 1


def test_label_scores_are_the_models_and_computed_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, scores = make_task(), LabelScores(engine)
    samples = task.samples("test")
    found = scores.of(task, samples)
    ids = [ids[0] for ids in label_tokens(engine.tokenizer, task)]
    for row, result in zip(
        found, engine.generate(Request(s.prompt, max_tokens=1, logprobs=96) for s in samples), strict=True
    ):
        assert list(row) == [result.logprobs[0].top[token] for token in ids]
    monkeypatch.setattr(engine, "generate", lambda requests: [*requests])
    np.testing.assert_array_equal(scores.of(task, samples[::-1]), found[::-1])


def test_a_labels_score_is_the_sum_over_its_tokens(
    tiny_model: Callable[..., Path], tiny_engine: TinyEngine
) -> None:
    transformers = pytest.importorskip("transformers")
    engine = tiny_engine()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_model("llama", vocab_size=96), dtype=torch.float32
    )
    task = make_task(labels=("x", "xyz", "xyw", "a long one"))
    samples = [Sample(prompt, "x") for prompt in ("word", "word word 1", "w", "xy", "x")]
    found = LabelScores(engine).of(task, samples)
    for row, sample in zip(found, samples, strict=True):
        prompt = engine.tokenizer.encode(sample.prompt)
        for score, label in zip(row, task.labels, strict=True):
            ids = engine.tokenizer.encode(label, special=False)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            assert score == pytest.approx(logits.log_softmax(-1)[range(len(ids)), ids].sum().item(), abs=1e-3)


def test_labels_of_several_tokens_are_generated_in_full(engine: Engine) -> None:
    samples = [Sample("word", ""), Sample("some word", "")]
    (results,) = answer_together(engine, make_task(labels=(), max_tokens=4), samples, [None])
    labels = tuple(result.text for result in results)
    assert len(set(labels)) == 2
    task = make_task(labels)
    given = [replace(sample, answer=label) for sample, label in zip(samples, labels, strict=True)]
    (again,) = answer_together(engine, task, given, [None])
    assert all(result.text.startswith(label) for result, label in zip(again, labels, strict=True))


def test_baselines_compute_what_they_say() -> None:
    train = [Sample(f"t{i}", "y" if i % 3 else "x") for i in range(30)]
    test = [Sample("p", "x"), Sample("q", "y")]
    rows = {s.prompt: [1.0 + (s.answer == "x"), 4.0] for s in train} | {"p": [2.0, 4.0], "q": [1.0, 4.1]}
    of = Baselines(Fixed(rows), train, seed=0, shots=30)
    task = Task("mine", "", lambda _: Splits(train, test), ("x", "y"))
    assert Majority(of).answers(task, test) == ["y", "y"]
    assert Restricted(of).answers(task, test) == ["y", "y"]
    # The training prompts' mean is (4/3, 4).
    assert Calibrated(of).answers(task, test) == ["x", "y"]
    assert Regression(of).answers(task, test) == ["x", "y"]
    one = Baselines(Fixed(rows), train[1:3], seed=0, shots=30)
    assert Regression(one).answers(task, test) == ["y", "y"]


def test_baselines_that_a_task_allows(engine: Engine) -> None:
    scores = LabelScores(engine)

    def names(task: Task) -> list[str]:
        return [method.name for method in baselines(scores, task, None, seeds=(0, 1), shots=8)]

    assert [name.split(" ")[0] for name in names(make_task())] == [
        "majority",
        *["base,"] * 3,
        *["logistic"] * 2,
    ]
    assert names(make_task(labels=())) == ["majority"]
    only_test = Task("t", "", lambda _: Splits([], [Sample("a", "x"), Sample("b", "y")]), ("x", "y"))
    assert names(only_test) == ["base, labels only"]


def test_rows(engine: Engine) -> None:
    class Says:
        def __init__(self, name: str, right: int) -> None:
            self.name, self.right, self.parameters = name, right, None

        def answers(self, task: Task, samples: list[Sample]) -> list[str]:
            return [s.answer if i < self.right else "no" for i, s in enumerate(samples)]

    task = make_task()
    samples = task.samples("test")
    methods = [Says("m", 10), ExpertMethod("base", engine, None), Says("m", 16), Says("all", 20)]
    rows = evaluate(task, samples, methods)
    assert [(row.method, row.runs, row.n) for row in rows] == [("m", 2, 20), ("base", 1, 20), ("all", 1, 20)]
    assert rows[0].accuracy == pytest.approx(0.65)
    assert rows[0].stderr == pytest.approx(math.sqrt(0.65 * 0.35 / 20 + 0.045 / 2))
    assert (rows[2].accuracy, rows[2].stderr) == (1, 0) and rows[1].seconds > 0
    table = markdown(rows).splitlines()
    assert (
        len(table) == 5
        and table[2].startswith("| mine | m |  | 0.650 |")
        and table[3].startswith("|  | base | 0 |")
    )


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(24, 24, 0.8620, 1.0), (0, 24, 0.0, 0.1380), (12, 24, 0.3143, 0.6857), (81, 263, 0.2553, 0.3662)],
)
def test_the_interval_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    """81 of 263: Newcombe 1998, table I; the others by the formula."""
    assert interval([right / n], n) == pytest.approx((low, high), abs=5e-5)


def test_runs_that_differ_widen_the_interval() -> None:
    one, same, apart = (interval(shares, 100) for shares in ([0.5], [0.5, 0.5], [0.4, 0.6]))
    assert one == same and apart[0] < one[0] and apart[1] > one[1]
    assert interval([0.0, 1.0], 10) == (0.0, 1.0)


def test_a_terminal_gets_a_table_that_fits_and_a_pipe_markdown() -> None:
    row = Row("task", "logistic regression on label scores", 1.0, 0.0, 24, 3, 1.25, 0.862, 1.0, 97_920)
    for width in (80, 60):
        terminal = Console(file=StringIO(), force_terminal=True, width=width, color_system=None)
        print_cells(row_cells([row]), terminal)
        lines = terminal.file.getvalue().splitlines()
        assert all(len(line.rstrip()) <= width for line in lines) and not any("…" in line for line in lines)
        words = " ".join(lines).split()
        assert {"97,920", "1.000", "0.862", "24", "1.2"} <= set(words) and "|" not in words
    pipe = Console(file=StringIO())
    print_cells(row_cells([row]), pipe)
    assert pipe.file.getvalue() == markdown([row]) + "\n"


def test_standard_error_of_one_run_is_the_binomials() -> None:
    assert standard_error([0.5], 100) == 0.05
    assert standard_error([0.5, 0.5], 100) == 0.05


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> str:
    return str(tiny_model("llama"))


@pytest.fixture
def task_file(tmp_path: Path) -> str:
    lines = [{"labels": ["x", "y"]}, *({"prompt": f"{i} is", "answer": "xy"[i % 2]} for i in range(50))]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(tmp_path / "mine.jsonl")


def test_the_command_prints_rows_with_baselines(
    model: str, task_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expert = str(tmp_path / "e.safetensors")
    assert main(["expert", "new", expert, "--random", "0.3", "--model", model]) == 0
    capsys.readouterr()
    options = ["--model", model, "--dtype", "float32", "--seeds", "2", "--shots", "9"]
    assert (
        main(["eval", task_file, "--expert", expert, "--runs", f"e={expert},{expert}", *options, "--json"])
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    rows = {row["method"]: row for row in printed["rows"]}
    assert list(rows) == [
        "base", "majority", "base, labels only", "base, calibrated", "logistic regression on label scores", expert, "e"
    ]  # fmt: skip
    assert set(rows["base"]) == {
        "task", "method", "accuracy", "stderr", "low", "high", "n", "runs", "seconds", "parameters"
    }  # fmt: skip
    assert rows["e"]["parameters"] == sum(len(z) for z in Expert.load(expert).z.values())
    assert rows["base"]["parameters"] == 0 and rows["majority"]["parameters"] is None
    assert rows["e"]["runs"] == 2 and rows["e"]["accuracy"] == rows[expert]["accuracy"]
    assert {row["n"] for row in rows.values()} == {10}
    assert main(["eval", task_file, *options]) == 0
    assert capsys.readouterr().out.startswith("| task | method | parameters | accuracy |")


def test_the_command_names_the_baselines_that_it_leaves_out(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "held.jsonl"
    path.write_text('{"labels": ["x", "y"]}\n{"prompt": "1 is", "answer": "x", "split": "test"}')
    assert main(["eval", str(path), "--model", model, "--dtype", "float32", "--json"]) == 0
    printed = capsys.readouterr()
    assert [row["method"] for row in json.loads(printed.out)["rows"]] == ["base", "base, labels only"]
    assert "held has no train samples" in printed.err and "(majority, calibrated and logistic" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sstt"], "there is no task 'sstt'"),
        (["sst2", "--data", "/nowhere"], "sst2_train.tsv is missing"),
        (["addition", "--runs", "x"], "--runs takes NAME=PATH"),
        (["addition", "--lora", "low=a,,b"], "--lora takes NAME=PATH"),
        (["addition", "--lora", "low=/nowhere"], "holds no adapter_config.json"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], words: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *arguments, "--model", model]) == 1
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--expert", "unknown"], "there is no expert 'unknown'"),
        (["--expert", "sst2=1,unknown=1"], "there is no expert 'unknown'"),
        (["--runs", "x=none.safetensors"], "none.safetensors: there is no such file"),
        (["--right", "addition=unknown"], "there is no expert 'unknown'"),
        (["--kv-reuse"], "name one with --expert"),
    ],
)
def test_experts_are_checked_before_the_model_loads(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("zweave.cli.eval.open_engine")
    assert main(["eval", "addition", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_a_prompt_that_is_too_long_is_refused(engine: Engine) -> None:
    task = Task("long", "", lambda _: Splits([], [Sample("x" * 2000, "y")]))
    with pytest.raises(ZweaveError, match="the prompt has 2000 tokens"):
        ExpertMethod("base", engine, None).answers(task, task.samples("test"))
