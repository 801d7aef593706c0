"""No command writes over a file that it reads, whatever name leads to it, or over another without being asked to."""

import argparse
import os
from pathlib import Path

import pytest

from zweave.cli.main import main
from zweave.errors import ZweaveError
from zweave.options.file_options import check_output

# Of every command that writes what the user names; {} is a file that is there.
COMMANDS = """
generate --input in.jsonl --jsonl --output {}
trace --output {}
trace --output new.json --png {}
expert new {} --model none
expert mix {} a.safetensors=0.5
expert import params.pt {} --model none
expert show a.safetensors --png {}
expert transfer a.safetensors {} --from none --to none
expert search task.jsonl --experts a.safetensors --out {}
expert classifier task.jsonl --out {}
bench prefix-tree --plot {}
vllm-export a.safetensors -o adapter
train mine.jsonl --out . --steps 2
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "in.jsonl",
        "a.safetensors",
        "params.pt",
        "task.jsonl",
        "there",
        "adapter/adapter_config.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "mine.jsonl").write_text("".join(f'{{"prompt": "{i}", "answer": "b"}}\n' for i in range(60)))
    (tmp_path / "mine.log.jsonl").write_text("mine")
    os.link("in.jsonl", "hard")
    os.symlink("in.jsonl", "soft")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS.strip().splitlines())
def test_what_is_there_needs_overwrite(command: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    before = contents(folder)
    assert main(command.format("there").split()) == 1
    assert "is there already: give another name, or --overwrite" in capsys.readouterr().err
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("option", "output"),
    [
        ("--output", "in.jsonl"),
        ("--output", "./soft"),
        ("--output", "hard"),
        ("--output", "a.safetensors"),
        ("--output", "model/config.json"),
        ("--output", "same.png"),
        ("--png", "in.jsonl"),
    ],
)
def test_what_is_read_is_never_written(folder: Path, option: str, output: str) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").touch()
    args = argparse.Namespace(
        input="in.jsonl",
        load=["x=y,a.safetensors"],
        model="model",
        png=Path("same.png"),
        overwrite=True,
        other=3,
    )
    setattr(args, option.removeprefix("--"), Path(output))
    with pytest.raises(ZweaveError, match=r"which the same command takes as|in the directory of the model"):
        check_output(args, option, Path(output))


@pytest.mark.parametrize(
    ("output", "words"),
    [("missing/out", "there is no directory"), ("adapter", "is a directory: give a file name")],
)
def test_what_cannot_be_written_is_refused_first(folder: Path, output: str, words: str) -> None:
    with pytest.raises(ZweaveError, match=words):
        check_output(argparse.Namespace(overwrite=True), "--out", Path(output))


def test_what_may_be_written(folder: Path) -> None:
    long_prompt = argparse.Namespace(prompts=["word " * 2000, "nul\0"], input="in.jsonl", overwrite=False)
    check_output(long_prompt, "--output", Path("new"))
    check_output(long_prompt, "--output", Path(os.devnull))
    check_output(long_prompt, "--output", Path("there"), is_continued=True)
    check_output(argparse.Namespace(overwrite=True), "--output", Path("there"))
