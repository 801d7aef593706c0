"""What a training finds in its directory: its own files, an earlier expert, or what it must leave alone."""

import json
from pathlib import Path

import pytest
import torch

from zweave.adapters.lora_record import LORA_RECORD
from zweave.experts import Expert
from zweave.train.run_files import RunFiles, compared


def expert(path: Path, **training: object) -> None:
    Expert(z={"model.layers.0.mlp.up_proj": torch.ones(4)}, training=training).save(path)


def test_the_log_has_a_suffix_of_its_own(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, "tickets", "svf", "d" * 64)
    names = [path.name for path in files.written]
    assert names == ["tickets.safetensors", "tickets.log.jsonl", "tickets.png"]
    assert files.state.name == f"tickets-{'d' * 12}.state" and files.earlier() == {}


@pytest.mark.parametrize(
    ("training", "state", "resumes"),
    [
        ({"validation_accuracy": 0.5, "unfinished": True}, True, True),
        ({"validation_accuracy": 0.5, "unfinished": True}, False, False),
        ({"validation_accuracy": 0.5}, True, False),
        (None, True, True),
    ],
    ids=["interrupted", "of another recipe", "finished", "before its first validation"],
)
def test_only_an_unfinished_expert_is_gone_on_from(
    tmp_path: Path, training: dict[str, object] | None, state: bool, resumes: bool
) -> None:
    files = RunFiles(tmp_path, "e", "svf", "0" * 64)
    if training is not None:
        expert(files.expert, **training)
    if state:
        files.state.touch()
    assert files.resumes is resumes and files.earlier() == (training or {})


def test_what_is_no_expert_has_no_record(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, "e", "svf", "0" * 64)
    files.expert.write_text("mine")
    assert files.earlier() == {}


def test_a_lora_is_a_directory_with_a_record(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, "low", "lora", "0" * 64)
    assert files.expert not in files.written and files.earlier() == {}
    files.expert.mkdir()
    (files.expert / LORA_RECORD).write_text(json.dumps({"training": {"accuracy_after": 0.9}}))
    assert files.earlier() == {"accuracy_after": 0.9} and files.expert / LORA_RECORD in files.written


@pytest.mark.parametrize(
    ("earlier", "record", "words"),
    [
        ({"accuracy_after": 0.9}, {"accuracy_after": 0.4}, "worse than the one that it replaces"),
        ({"accuracy_after": 0.9}, {"accuracy_after": 0.95}, "better than"),
        (
            {"validation_accuracy": 0.9},
            {"accuracy_after": 1, "validation_accuracy": 0.9},
            "as good as the one that it replaces (validation accuracy 0.900)",
        ),
        ({}, {"accuracy_after": 0.4}, ""),
    ],
)
def test_which_of_two_is_better_is_said(
    earlier: dict[str, float], record: dict[str, float], words: str
) -> None:
    found = compared(earlier, record)
    assert words in found and bool(found) == bool(words)
