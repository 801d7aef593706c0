"""The trained adapters of the LoRA benches: generated tasks are what their names say, finished ones are kept."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from zweave.adapters.peft_directory import read_peft
from zweave.bench.learning.lora.accuracy import means
from zweave.bench.learning.lora.adapters import AdapterFolder, trained_adapters
from zweave.bench.learning.lora.generated_tasks import ANSWERS, ATTRIBUTES, generated_tasks
from zweave.bench.learning.lora.kept_answers import KeptAnswers
from zweave.bench.learning.lora.ways import WAYS
from zweave.cli.main import main
from zweave.errors import ZweaveError

ALL = len(ANSWERS) * sum(map(len, ATTRIBUTES.values()))
TEXTS = {
    "trec": ("How many people live in the city of Rome in 1990 ?", "number"),
    "sst2": ("a film , but the best", "positive"),
    "mpqa": ("fear of war", "negative"),
}
# What is true of the texts above, by hand.
TRUE = {
    "trec": {
        "over-7-words", "over-9-words", "has-the", "has-of", "has-in", "begins-how", "has-number", "has-name",
        "is-number",
    },
    "sst2": {"has-the", "has-film", "has-but", "has-comma", "is-positive"},
    "mpqa": {"over-2-words", "has-of"},
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of the tasks in which every tenth text is that of TEXTS."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        kept = {name: f"{text} {split}" for name, (text, _) in TEXTS.items()}
        sst2 = [f"{split} {i} bad\t0" if i % 10 else f"{kept['sst2']} {i}\t1" for i in range(60)]
        (folder / f"sst2_{split}.tsv").write_text("\n".join(sst2))
        trec = [f"{i % 6} Why {split} {i} ?" if i % 10 else f"5 {kept['trec']} {i}" for i in range(60)]
        (folder / f"TREC.{split}.all").write_text("\n".join(trec))
    (folder / "mpqa.all").write_text("\n".join(f"{i % 2} word {i}" for i in range(60)))
    return folder


def test_all_generated_tasks_differ_and_follow_from_the_seed() -> None:
    names = [task.name for task in generated_tasks(ALL)]
    assert len(set(names)) == ALL >= 128
    assert [task.name for task in generated_tasks(20)] == names[:20]
    assert {task.name for task in generated_tasks(ALL, seed=1)} == set(names)
    assert [task.name for task in generated_tasks(20, seed=1)] != names[:20]
    with pytest.raises(ZweaveError, match=f"there are {ALL} generated tasks, not {ALL + 1}"):
        generated_tasks(ALL + 1)


@pytest.mark.parametrize("source", ATTRIBUTES)
def test_an_attribute_holds_of_the_texts_that_have_it(source: str) -> None:
    text, answer = TEXTS[source]
    found = {attribute.name for attribute in ATTRIBUTES[source] if attribute.holds(text, f" {answer}")}
    assert found == TRUE[source]


def test_a_generated_task_asks_its_question_and_wants_its_words(data: Path) -> None:
    tasks = {task.name: task for task in generated_tasks(ALL)}
    task = tasks["sst2-has-film-red-blue"]
    assert task.labels == (" red", " blue")
    samples = task.samples("test", data)
    assert len(samples) == 60 and sum(sample.answer == " red" for sample in samples) == 6
    for sample in samples:
        assert 'the word "film"' in sample.prompt and "Say red if so, blue if not." in sample.prompt
        # The words of the task that the text is from are not asked, too.
        assert "Review:" not in sample.prompt and "sentiment" not in sample.prompt
        assert ("a film , but the best" in sample.prompt) == (sample.answer == " red")


def test_adapters_come_in_the_order_in_which_they_are_wanted() -> None:
    names = [adapter.name for adapter in trained_adapters([8, 16], [0, 1], 2)]
    generated = [f"g{index:03}-{task.name}" for index, task in enumerate(generated_tasks(2))]
    assert names[:5] == ["sst2-r16-s0", "trec-r16-s0", "addition-r16-s0", *generated]
    assert len(names) == len(set(names)) == 3 * 2 * 2 + 2


@pytest.fixture
def make(tiny_model: Callable[..., Path], data: Path) -> Callable[..., int]:
    """`make("lora-adapters", ...)`: a bench of four adapters of a tiny model."""
    pytest.importorskip("peft")

    def run(bench: str, *more: str) -> int:
        model = str(tiny_model("llama"))
        fixed = ["--model", model, "--dtype", "float32", "--data", str(data), "--ranks", "16", "--seeds", "0"]
        return main(["bench", bench, *fixed, "--generated", "1", "--json", *more])

    return run


STEPS = ("--steps", "2", "--generated-steps", "1")


@pytest.mark.slow
def test_finished_adapters_are_kept(
    make: Callable[..., int],
    data: Path,
    tiny_model: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert make("lora-adapters", *STEPS) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["steps"] for row in rows] == [2, 2, 2, 1]
    folder = AdapterFolder.of(str(tiny_model("llama")), "float32").path
    for row in rows:
        assert read_peft(folder / row["provider"]).rank == 16
    monkeypatch.setattr("zweave.bench.learning.lora.adapters.open_policy", None)
    assert make("lora-adapters", *STEPS) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == rows
    assert make("lora-adapters", "--data", str(data / "none")) == 1
    assert "is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_a_batch_of_ours_answers_as_peft(
    make: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zweave.bench.harness.machine.commit", lambda: "abc")
    assert make("lora-adapters", *STEPS) == 0
    capsys.readouterr()
    few = ("--samples", "6", "--generated-samples", "4")
    assert make("lora-accuracy", *few) == 0
    rows = {row["provider"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    adapters = {name: row for name, row in rows.items() if row["kind"] == "adapter"}
    assert [row["n"] for row in adapters.values()] == [6, 6, 6, 4]
    assert all(row["exact_same"] == 1 and row["exact"] == row["peft"] for row in adapters.values())
    # Four adapters of rank 16: a basis of 64 components loses nothing of them.
    assert all(row["compressed-64_same"] == 1 for row in adapters.values())
    assert any(row["base_same"] < 1 for row in adapters.values())
    assert rows["mean of 1 trec-r16"]["exact"] == rows["trec-r16-s0"]["exact"]
    # What was answered is kept.
    unasked = dict.fromkeys(WAYS, lambda *args: pytest.fail("asked again"))
    monkeypatch.setattr("zweave.bench.learning.lora.accuracy.WAYS", unasked)
    assert make("lora-accuracy", *few) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == [*rows.values()]
    assert make("lora-accuracy", "--seeds", "7", "--generated", "0") == 1
    assert "make them with zweave bench lora-adapters" in capsys.readouterr().err


def test_answers_are_kept_of_what_a_commit_and_an_instruction_set_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answers(commit: str, isa: str) -> list[list[str]]:
        monkeypatch.setattr("zweave.bench.harness.machine.commit", lambda: commit)
        monkeypatch.setattr("zweave.bench.learning.lora.kept_answers.cpu_isa", lambda: isa, raising=False)
        return KeptAnswers(tmp_path, [], "float32").get("exact", lambda: [[str(asked.append(commit))]])

    for commit, isa, times in (
        ("abc", "avx2", 1), ("abc", "avx2", 1), ("abc", "amx", 2), ("def", "amx", 3), ("abc", "avx2", 3),
        ("abc+", "avx2", 4), ("abc+", "avx2", 5), ("unknown", "avx2", 6), ("unknown", "avx2", 7),
    ):  # fmt: skip
        assert answers(commit, isa) == [["None"]] and len(asked) == times, (commit, isa)


def test_means_are_of_the_adapters_of_a_group() -> None:
    rows = [
        {"provider": "a", "group": "x", "kind": "adapter", "n": 4, "stderr": 0.1, "peft": 0.25, "exact_same": 1.0},
        {"provider": "b", "group": "y", "kind": "adapter", "n": 4, "stderr": 0.1, "peft": 0.5, "exact_same": 0.5},
        {"provider": "c", "group": "x", "kind": "adapter", "n": 4, "stderr": 0.1, "peft": 0.75, "exact_same": 0.0},
    ]  # fmt: skip
    found = {row["provider"]: (row["peft"], row["exact_same"]) for row in means(rows)}
    assert found == {"mean of 2 x": (0.5, 0.5), "mean of 1 y": (0.5, 0.5)}
