"""The experts that come with the package are found by name wherever an expert is taken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from zweave import Engine
from zweave.cli.main import main
from zweave.errors import ZweaveError
from zweave.experts import Expert, bundled_expert
from zweave.experts.bundled import expert_file


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_name_is_the_expert_that_comes_with_zweave() -> None:
    assert expert_file("sst2") == expert_file(Path("sst2")) == bundled_expert("sst2")
    assert Expert.load("sst2").digest == Expert.load(bundled_expert("sst2")).digest


def test_load_takes_such_a_name(capsys: pytest.CaptureFixture) -> None:
    assert main(["generate", "x", "--load", "mine=sst2", "--expert", "mine", "--model", "no-model"]) == 1
    assert "no-model" in capsys.readouterr().err
    assert main(["generate", "x", "--load", "mine=sst3", "--model", "no-model"]) == 1
    assert "--load: there is no file sst3" in capsys.readouterr().err


def test_a_file_goes_before_a_name_and_a_folder_does_not() -> None:
    Path("sst2").mkdir()
    assert expert_file("sst2") == bundled_expert("sst2")
    shutil.copy(bundled_expert("trec"), "addition")
    assert Expert.load("addition").digest == Expert.load("trec").digest
    shutil.copy("addition", "any.suffix")
    assert expert_file("any.suffix") == Path("any.suffix")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            "sst3",
            r"^there is no expert 'sst3': give a file, a LoRA's directory, or one that .*: .*sst2.*trec.*--load",
        ),
        ("x" * 300, r"^there is no expert 'xxx"),
        (
            "folder",
            r"^folder: is a directory without adapter_config\.json: give an expert file, or a LoRA of PEFT's$",
        ),
        ("sst2.safetensors", r"^sst2.safetensors: there is no such file$"),
        ("experts/sst2", r"^experts/sst2: there is no such file$"),
    ],
)
def test_other_names_are_files(named: str, message: str) -> None:
    Path("folder").mkdir()
    with pytest.raises(ZweaveError, match=message):
        Expert.load(named)


def test_the_engine_takes_names(tiny_engine: Callable[..., Engine]) -> None:
    """These are for another model, which is found out after they were."""
    Path("sst2.safetensors").touch()
    with pytest.raises(ZweaveError, match=r"^sst2\.safetensors: is not a whole safetensors file"):
        tiny_engine().load_expert("sst2.safetensors")
    for load in (
        lambda engine: engine.load_expert("mine", "sst2"),
        lambda engine: engine.load_expert("sst2"),
    ):
        with pytest.raises(ZweaveError, match=r"sst2\.safetensors: .*other weights"):
            load(tiny_engine())


def test_commands_take_names(capsys: pytest.CaptureFixture) -> None:
    assert main(["expert", "show", "sst2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == Expert.load("sst2").digest
    assert main(["expert", "diff", "sst2", str(bundled_expert("sst2")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["distance"] == 0
    assert main(["expert", "mix", "mixed.safetensors", "sst2=0.5", "trec=0.5"]) == 0
    parts = Expert.load("mixed.safetensors").training["mixture"]
    assert [part["digest"] for part in parts] == [Expert.load(name).digest for name in ("sst2", "trec")]
