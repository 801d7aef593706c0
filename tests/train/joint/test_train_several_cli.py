"""`zweave train` of several trainings: the files of each, names, interruptions, and what goes wrong."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from zweave.experts import Expert
from zweave.train.run import Recorder

pytest.importorskip("transformers")
QUICK = ("--batch", 2, "--draws", 4, "--validation", 2, "--held-out", 3, "--dtype", "float32", "--steps", 2)
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_each_training_leaves_the_files_that_it_leaves_alone(zweave: Run, tmp_path: Path) -> None:
    done = zweave("letters.jsonl", *QUICK, "--support", "full,leading:R/4", "--seed", 1, "--json")
    assert done.returncode == 0, done.stderr
    names = ["letters-full", "letters-leading-R-4"]
    assert all(f"{name}: step 2 of 2" in done.stderr for name in names)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    for name, record in zip(names, records, strict=True):
        expert = Expert.load(tmp_path / "out" / f"{name}.safetensors")
        assert expert.training == record and (record["support"], record["seed"]) == (expert.support, 1)
        log = (tmp_path / "out" / f"{name}.log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == [0, 1]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {f"{name}{end}" for name in names for end in (".safetensors", ".log.jsonl", ".png")}
    alone = zweave("letters.jsonl", *QUICK, "--support", "leading:R/4", "--seed", 1, "--name", "alone")
    assert alone.returncode == 0
    assert Expert.load(tmp_path / "out" / "alone.safetensors").digest == expert.digest


@pytest.mark.slow
def test_loras_of_several_ranks_leave_peft_directories(zweave: Run, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    done = zweave("letters.jsonl", *QUICK, "--adapter", "lora", "--rank", "2,4")
    assert done.returncode == 0, done.stderr
    for rank in (2, 4):
        folder = tmp_path / "out" / f"letters-rank-{rank}"
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == rank
        tensors = load_file(folder / "adapter_model.safetensors")
        assert {len(tensor) for key, tensor in tensors.items() if "lora_A" in key} == {rank}


def test_what_was_finished_before_an_interruption_is_kept(
    zweave: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("letters.jsonl", *QUICK, "--seed", "3,4", "--name", "one,two")
    finish = Recorder.finish

    def interrupted(self: Recorder) -> None:
        finish(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "finish", interrupted)
        assert zweave(*arguments).returncode == 130
    first = (tmp_path / "out" / "one.safetensors").read_bytes()
    assert [path.name[:4] for path in (tmp_path / "out").glob("*.state")] == ["two-"]
    done = zweave(*arguments)
    assert done.returncode == 0, done.stderr
    assert "one: finished already, kept as it is" in done.stderr and "two: going on" in done.stderr
    assert [line.split(":")[0][-15:] for line in done.stdout.splitlines()] == [
        "one.safetensors",
        "two.safetensors",
    ]
    assert (tmp_path / "out" / "one.safetensors").read_bytes() == first
    assert Expert.load(tmp_path / "out" / "two.safetensors").training["steps_done"] == 2
    again = zweave(*arguments)
    assert again.returncode == 1 and "one.safetensors is the expert of a finished training" in again.stderr


def test_one_that_fails_is_told_when_the_others_are_done(zweave: Run, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text(
        "from zweave.tasks import Sample, Splits, Task\nS = [Sample(c, 'a') for c in 'qwertyuiop']\n"
        "task = Task('raises', '', lambda data: Splits(S, S[:3]), judge=lambda s, t: 1 / 0)\n"
    )
    done = zweave("raises.py", "letters.jsonl", *QUICK)
    assert done.returncode == 1 and "letters.safetensors: validation" in done.stdout
    (error,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert "error: raises: the reward of the task raises fails: ZeroDivisionError" in error
    assert not (tmp_path / "out" / "raises.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("letters.jsonl", "./letters.jsonl"), 1, "two trainings would write letters: name each of them"),
        (
            ("letters.jsonl", "--seed", "0,1", "--name", "one"),
            1,
            "2 trainings (letters-seed-0, letters-seed-1)",
        ),
        (("letters.jsonl", "--seed", "0,1", "--name", "one,one"), 1, "two trainings would write one"),
        (("letters.jsonl", "--seed", "0,x"), 2, "x is not a whole number"),
        (("letters.jsonl", "--seed", "2,2"), 2, "2,2 names a value twice"),
        (("letters.jsonl", "--rank", "8,16"), 1, "--rank: several ranks are for --adapter lora"),
    ],
)
def test_trainings_that_do_not_fit_are_one_line(zweave: Run, arguments: Any, code: int, words: str) -> None:
    try:
        done = zweave(*arguments, *QUICK)
    except SystemExit as ended:
        assert ended.code == code == 2
        return
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
