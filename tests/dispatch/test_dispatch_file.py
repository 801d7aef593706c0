"""Dispatchers from files, and the commands that take them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zweave import Engine, ZweaveError
from zweave.cli.main import main
from zweave.dispatch import (
    EarlyClassifier,
    FixedDispatcher,
    HiddenDispatcher,
    PromptDispatcher,
    load_dispatcher,
)

TinyEngine = Callable[..., Engine]
PROMPT = {"strategy": "prompt", "experts": {"x": "a", "y": None}, "instruction": "x or y?"}
HIDDEN = {"strategy": "hidden", "experts": {"x": "a", "y": "b"}, "classifier": "c.safetensors"}


@pytest.fixture(scope="module")
def engine(tiny_engine: TinyEngine) -> Engine:
    return tiny_engine()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a classifier of x and y."""
    weight = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    EarlyClassifier(("x", "y"), 1, weight, torch.zeros(2)).save(tmp_path / "c.safetensors")
    return tmp_path


def written(folder: Path, fields: object) -> Path:
    path = folder / "dispatcher.json"
    path.write_text(json.dumps(fields))
    return path


def test_each_strategy(engine: Engine, folder: Path) -> None:
    found = load_dispatcher(engine, written(folder, {**PROMPT, "calibration": [], "threshold": 0.25}))
    assert isinstance(found, PromptDispatcher) and not found.offsets.any()
    assert (found.routes.threshold, found.instruction, found.instruction_first) == (0.25, "x or y?", False)
    found = load_dispatcher(
        engine, written(folder, {**PROMPT, "instruction_first": True, "expert": "late", "text_tokens": 9})
    )
    assert isinstance(found, PromptDispatcher) and found.offsets.all()
    assert (found.instruction_first, found.expert, found.text_tokens) == (True, "late", 9)
    found = load_dispatcher(engine, written(folder, {**HIDDEN, "soft": True}))
    assert isinstance(found, HiddenDispatcher) and found.classifier.layer == 1 and found.routes.soft
    found = load_dispatcher(engine, written(folder, {"strategy": "fixed", "expert": {"a": 0.5, "b": 0.5}}))
    assert isinstance(found, FixedDispatcher)


def test_expert_files_lie_beside_it(tiny_engine: TinyEngine, folder: Path) -> None:
    engine = tiny_engine()
    engine.bank.registered("a").read().save(folder / "mine.safetensors")
    wanted: list[object] = []

    def load(engine: Engine, choices: object) -> None:
        for choice in choices:
            wanted.append(choice)
            if choice is not None:
                engine.load_expert(choice, choice)

    fields = {"strategy": "fixed", "expert": "mine.safetensors"}
    load_dispatcher(engine, written(folder, fields), load)
    assert wanted == [str(folder / "mine.safetensors")]


def test_a_python_file(engine: Engine, folder: Path) -> None:
    path = folder / "mine.py"
    path.write_text("from zweave.dispatch import FixedDispatcher\ndispatcher = FixedDispatcher('b')\n")
    assert load_dispatcher(engine, path).choose(None, None).mixture == "b"
    for source, words in (
        ("1 / 0", "fails: ZeroDivisionError"),
        ("dispatcher = 5", "defines no dispatcher"),
        ("x = 5", "defines no dispatcher"),
    ):
        path.write_text(source)
        with pytest.raises(ZweaveError, match=words):
            load_dispatcher(engine, path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([], "must be a JSON object"),
        ({}, "strategy must be one of prompt, hidden, few-shot, fixed, not None"),
        ({"strategy": ["prompt"]}, "strategy must be one of"),
        ({"strategy": "prompt", "experts": {"x": "a"}}, "needs 'instruction'"),
        ({**PROMPT, "tone": 1}, "the strategy prompt has no 'tone': it takes calibration, expert,"),
        ({"strategy": "fixed", "expert": "a", "soft": True}, "the strategy fixed has no 'soft'"),
        ({**PROMPT, "experts": ["a"]}, "experts must map labels"),
        ({**PROMPT, "experts": {"x": "nobody", "y": "a"}}, "no expert 'nobody'"),
        ({**PROMPT, "instruction": 5}, "must be texts"),
        ({**PROMPT, "calibration": "N/A"}, "must be texts"),
        ({**PROMPT, "text_tokens": 1.5}, "a whole number"),
        ({**PROMPT, "experts": {"long": "a", "y": "b"}}, "is 4 tokens"),
        ({**HIDDEN, "classifier": 5}, "classifier must be a file's name"),
        ({**HIDDEN, "classifier": "none.safetensors"}, "none.safetensors"),
        ({**HIDDEN, "experts": {"w": "a"}}, "the classifier has no label 'w'"),
        ({"strategy": "fixed", "expert": 5}, "an expert is a name"),
        ({"strategy": "few-shot", "file": "none.safetensors"}, "none.safetensors"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(engine: Engine, folder: Path, fields: object, words: str) -> None:
    with pytest.raises(ZweaveError, match=words) as error:
        load_dispatcher(engine, written(folder, fields))
    assert "dispatcher.json" in str(error.value)


def test_files_that_are_none(engine: Engine, folder: Path) -> None:
    (folder / "bad.json").write_text("{")
    for name, words in (("bad.json", "not JSON"), ("none.json", "is none"), ("c.safetensors", "is none")):
        with pytest.raises(ZweaveError, match=words):
            load_dispatcher(engine, folder / name)


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "a", "--expert", "auto", "--dispatcher"],
        ["chat", "--expert", "auto", "--dispatcher"],
        ["eval", "addition", "--dispatch"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"strategy": "fixed", "expert": "nobody"}, "there is no expert 'nobody'"),
        ({**PROMPT, "expert": "sst2", "experts": {"x": "gone.safetensors", "y": None}}, "no such file"),
        ({**HIDDEN, "experts": {"z": "sst2"}}, "the classifier has no label 'z'"),
        ({**PROMPT, "experts": {"x": "sst2", "y": None}, "text_tokens": 1.5}, "a whole number"),
        ({"strategy": "few-shot", "file": "c.safetensors"}, "c.safetensors"),
        ({"strategy": "fixed", "expert": "auto"}, "'auto' needs a dispatcher"),
    ],
    ids=str,
)
def test_commands_check_the_file_before_a_model_is_looked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str], fields: object, words: str
) -> None:
    path = written(folder, fields)
    assert main([*command, str(path), "--model", str(folder / "no model")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"zweave: error: {path}: ") and words in error


def test_the_commands(
    tiny_model: Callable[..., Path],
    random_expert: Callable,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from zweave.checkpoint import ModelConfig

    directory = tiny_model("llama")
    shapes = ModelConfig.from_directory(directory).adapted_shapes()
    for seed, name in enumerate("ab"):
        random_expert(shapes, seed=seed).save(folder / f"{name}.safetensors")
    path = written(folder, {**HIDDEN, "experts": {"x": "a.safetensors", "y": "b.safetensors"}})
    common = ["--model", str(directory), "--dtype", "float32", "--max-tokens", "3", "--expert", "auto"]
    dispatcher = ["--dispatcher", str(path)]
    assert main(["generate", "--jsonl", "abc", "what is it", *common, *dispatcher]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {Path(line["expert"]).name for line in lines} <= {"a.safetensors", "b.safetensors"}
    assert all(line["dispatch"]["mixture"] == line["expert"] for line in lines)
    assert all(set(line["dispatch"]["probabilities"]) == {"x", "y"} for line in lines)
    assert main(["generate", "abc", *common]) == 1
    assert "needs a dispatcher" in capsys.readouterr().err
    (folder / "in.jsonl").write_text('{"prompt": "abc", "dispatcher": "x"}\n')
    assert main(["generate", "--jsonl", "--input", str(folder / "in.jsonl"), *common, *dispatcher]) == 1
    assert "unknown field 'dispatcher'" in capsys.readouterr().err
    replies = iter(["hello", "/expert base", "hello", "/quit"])
    monkeypatch.setattr("rich.console.Console.input", lambda *_: next(replies))
    assert main(["chat", *common, *dispatcher]) == 0
    out = capsys.readouterr().out
    assert out.count(".safetensors (x, ") + out.count(".safetensors (y, ") == 1
