"""`zweave train-describe`, `zweave describe` and `zweave eval --describe` from end to end."""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from zweave.cli.main import main
from zweave.describe.generator_file import TrainedGenerator
from zweave.experts import Expert

pytest.importorskip("transformers")
ATTRIBUTES = ("positive", "has-digit", "about-sports", "about-world", "asks-person", "question", "is-news")


@pytest.mark.slow
def test_a_generator_is_trained_used_and_evaluated(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if "ZWEAVE_DATA" not in os.environ:
        pytest.skip("needs ZWEAVE_DATA")
    model, out = str(tiny_model("llama")), tmp_path / "g.safetensors"
    train = ["train-describe", "--model", model, "--out", str(out), "--encoder", "base", "--texts", "20"]
    train += ["--descriptions", "4", "--rows", "2", "--dtype", "float32", "--reading-steps", "5"]
    train += ["--attributes", ",".join(ATTRIBUTES), "--words", "yes-no,red-blue", "--first-layer", "1"]
    assert main([*train, "--steps", "12", "--minutes", "0.0001"]) == 0
    assert "unfinished" in capsys.readouterr().out and not out.exists()
    assert main([*train, "--steps", "12"]) == 0
    assert "written" in capsys.readouterr().out and not out.with_suffix(".state").exists()
    lines = [json.loads(line) for line in out.with_suffix(".log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    if importlib.util.find_spec("matplotlib"):
        assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert main([*train, "--steps", "12"]) == 1
    assert "is there already" in capsys.readouterr().err

    expert = tmp_path / "e.safetensors"
    describe = [
        "describe",
        "Say red if the text is positive, else blue.",
        "--generator",
        str(out),
        "--model",
        model,
    ]
    assert main([*describe, "-o", str(expert), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["nearest"] and -1 <= said["similarity"] <= 1.001 and said["change"] > 0
    made = Expert.load(expert)
    assert made.description.startswith("Say red") and made.prompt_template is not None
    # " blue" is the longest answer, a token a character here, and an end token follows.
    assert made.prompt_template.max_tokens == 6

    known = tmp_path / "known"
    known.mkdir()
    task = TrainedGenerator.load(out).known_tasks[0]
    replace(made, training={"task": f"hidden:{task}"}).save(known / "own.safetensors")
    more = [*train, "--steps", "2", "--out", str(tmp_path / "h.safetensors"), "--warm-start", str(known)]
    assert main([*more, "--policy", "0.5", "--kl", "0.1", "--opening", "0"]) == 0
    assert "written" in capsys.readouterr().out
    record = TrainedGenerator.load(tmp_path / "h.safetensors").training
    assert [record[name] for name in ("warm_start", "policy", "kl", "opening")] == [True, 0.5, 0.1, 0]
    first = json.loads((tmp_path / "h.log.jsonl").read_text().splitlines()[0])
    # From its first step on it makes what it has begun near.
    assert first["divergence"] > 0 and first["change"] > 0

    static = tmp_path / "s.safetensors"
    assert main([*train, "--steps", "12", "--static", "--out", str(static)]) == 0
    assert Expert.load(static).first_layer == 1
    assert "written" in capsys.readouterr().out
    assert main([*describe, "-o", str(tmp_path / "f.safetensors"), "--json", "--static", str(static)]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["from_static"] < 1
    asked = ["eval", "L1", "L3", "--describe", str(out), "--model", model, "--dtype", "float32"]
    assert main([*asked, "--level-tasks", "2", "--samples", "4", "--json", "--static", str(static)]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["level"] for row in rows} == {"L1", "L3"}
    assert {"base", "matched", "shuffled", "junk", "static expert"} <= {row["condition"] for row in rows}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["L1", "sst2"], "there is no level 'sst2': choose of L1, L2, L3"),
        (["L1", "--expert", "sst2"], "--describe evaluates a generator alone"),
    ],
)
def test_what_an_evaluation_cannot_be_asked_is_told_first(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "g.safetensors"
    file.write_bytes(b"is not read")
    assert main(["eval", *words, "--describe", str(file)]) == 1
    assert said in capsys.readouterr().err
