"""Fixtures of the tests that run `zweave train`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zweave.cli.main import main

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def directory(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture
def command(directory: Path, tmp_path: Path) -> Callable[..., list[str]]:
    lines = [json.dumps({"labels": ["a", "b"]})]
    lines += [json.dumps({"prompt": f"{'xy'[i % 2]}{i}", "answer": "ab"[i % 2]}) for i in range(40)]
    (tmp_path / "letters.jsonl").write_text("\n".join(lines), "utf-8")

    def make(*arguments: object) -> list[str]:
        own = ["--model", directory, "--out", tmp_path / "out"]
        return [str(part) for part in (sys.executable, "-m", "zweave.cli.main", "train", *arguments, *own)]

    return make


@pytest.fixture
def zweave(
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs the command in this process."""
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        _, _, _, *own = command(*arguments)
        capsys.readouterr()
        code = main(own)
        return subprocess.CompletedProcess(own, code, *capsys.readouterr())

    return run
