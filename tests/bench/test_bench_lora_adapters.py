"""The trained adapters of the LoRA benches: generated tasks are what their names say, finished ones are kept."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from zweave.adapters.peft_directory import read_peft
from zweave.bench.learning.lora.adapters import adapters_dir, trained_adapters
from zweave.bench.learning.lora.generated_tasks import ANSWERS, ATTRIBUTES, generated_tasks
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
    names = [adapter.name for adapter in trained_adapters([8, 16], [0, 1], 40, 2, 12)]
    generated = [f"g{index:03}-{task.name}" for index, task in enumerate(generated_tasks(2))]
    assert names[:5] == ["sst2-r16-s0", "trec-r16-s0", "addition-r16-s0", *generated]
    assert len(names) == len(set(names)) == 3 * 2 * 2 + 2


@pytest.mark.slow
def test_finished_adapters_are_kept(
    tiny_model: Callable[..., Path],
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("peft")
    model = str(tiny_model("llama"))
    arguments = [
        "bench", "lora-adapters", "--model", model, "--dtype", "float32", "--data", str(data), "--ranks", "16",
        "--seeds", "0", "--steps", "2", "--generated", "1", "--generated-steps", "1", "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["steps"] for row in rows] == [2, 2, 2, 1]
    for row in rows:
        assert read_peft(adapters_dir(model) / row["provider"]).rank == 16
    monkeypatch.setattr("zweave.bench.learning.lora.adapters.open_policy", None)
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == rows
    assert main([*arguments, "--data", str(data / "none")]) == 1
    assert "is missing" in capsys.readouterr().err
