"""`zweave bench gpu-engine` without a GPU, on the model of random weights that it makes."""

import json
import os
import sys

import pytest

from zweave.bench.serving.engine_server import EngineServer
from zweave.cli.main import main

ARGUMENTS = (
    "bench", "gpu-engine", "--device", "reference", "--random", "tiny", "--dtype", "float32", "--requests", "4",
    "--experts", "3", "--prompt", "9", "--new", "5", "--sequences", "3", "--rounds", "1", "--json",
)  # fmt: skip
KEYS = {
    "provider", "status", "error", "seconds", "rounds", "requests", "prompt", "new", "experts", "tok_s", "vs_base",
    "steps", "step_seconds", "host_seconds", "waiting",
}  # fmt: skip


def test_the_engine_on_the_reference_device(capsys: pytest.CaptureFixture) -> None:
    cache = os.environ["ZWEAVE_CACHE"]
    status = main(list(ARGUMENTS))
    line = json.loads(capsys.readouterr().out)
    assert status == 0, line["rows"]
    assert os.environ["ZWEAVE_CACHE"] == cache
    rows = {row["provider"]: row for row in line["rows"]}
    assert {name: row["experts"] for name, row in rows.items()} == {
        "zweave base": 0, "zweave leading": 3, "zweave": 3,
    }  # fmt: skip
    for row in rows.values():
        assert row.keys() >= KEYS
        # The prompts, then four requests of five tokens in three rows.
        assert row["steps"] >= 2 * 5
        assert 0 < row["host_seconds"] < row["step_seconds"] < row["seconds"]
        assert 0 < row["waiting"] < 1


@pytest.mark.slow
def test_others_on_the_same_device(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    status = main([*ARGUMENTS, "--providers", "always,transformers,peft"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert status == 0, rows
    assert [(row["provider"], row["experts"]) for row in rows] == [
        ("zweave", 3), ("transformers", 0), ("PEFT LoRA rank 16", 3),
    ]  # fmt: skip
    assert rows[1]["vs_transformers"] == 1 and "steps" in rows[0] and "steps" not in rows[1]


@pytest.mark.exhaustive
def test_what_is_not_installed_is_left_out(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    status = main([*ARGUMENTS[:-1], "--providers", "base,peft"])
    out = capsys.readouterr().out
    assert status == 0 and "Left out peft" in out
    assert [row["provider"] for row in json.loads(out.splitlines()[-1])["rows"]] == ["zweave base"]


@pytest.mark.exhaustive
def test_answers_under_no_expert_are_refused(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineServer, "expert", lambda self, index: None)
    status = main(list(ARGUMENTS))
    line = json.loads(capsys.readouterr().out)
    assert status == 1
    assert {row["provider"]: row["status"] for row in line["rows"]}["zweave"] == "wrong"
