"""Experts as vLLM's adapters: what is written, what is refused, and copies that lie under their digest."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zweave.cli.main import main
from zweave.errors import ZweaveError
from zweave.experts import Expert, bundled_expert
from zweave.integrations.vllm import is_adapter, load_adapter, pinned, save_adapter
from zweave.integrations.vllm.pinned import number, pinned_path
from zweave.text import PromptTemplate

SHAPES = {"model.layers.0.self_attn.q_proj": (8, 12), "model.layers.1.mlp.down_proj": (12, 8)}


WORDS = PromptTemplate("Film: {text}", "It is", (" a", " b"), 1)


@pytest.fixture
def expert(random_expert: Callable[..., Expert]) -> Expert:
    return replace(
        random_expert(SHAPES, seed=1), base_digest="ab" * 32, description="a test", prompt_template=WORDS
    )


def test_an_adapter_is_the_expert_to_the_bit(expert: Expert, tmp_path: Path) -> None:
    save_adapter(expert, tmp_path / "a")
    read = load_adapter(tmp_path / "a")
    assert read.digest == expert.digest and read.base_digest == expert.base_digest
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    # What vLLM and its resolvers require of an adapter.
    assert config["peft_type"] == "LORA" and config["r"] == 1 and config["lora_alpha"] == 1
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert config["zweave"]["digest"] == expert.digest
    assert read.prompt_template == WORDS and config["zweave"]["prompt_template"]["user"] == "Film: {text}"


def test_renormalisation_goes_with_the_expert(expert: Expert, tmp_path: Path) -> None:
    save_adapter(replace(expert, renormalise=True), tmp_path / "a")
    assert load_adapter(tmp_path / "a").renormalise


def test_exports_a_bundled_expert(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["vllm-export", "sst2", "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert load_adapter(tmp_path / "out").digest == Expert.load(bundled_expert("sst2")).digest


def test_exports_a_file_under_its_name(
    expert: Expert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expert.save(tmp_path / "mine.safetensors", half=False)
    assert main(["vllm-export", "mine.safetensors"]) == 0
    assert load_adapter("mine").digest == expert.digest


def test_exports_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["vllm-export", "sst2=0.7,trec=0.3"]) == 0
    mixed = load_adapter("sst2-0.7-trec-0.3")
    sst2, trec = (Expert.load(bundled_expert(name)) for name in ("sst2", "trec"))
    assert mixed.z.keys() == sst2.z.keys() | trec.z.keys()
    for module, z in mixed.z.items():
        expected = 0.7 * sst2.z[module].double() + 0.3 * trec.z[module].double()
        torch.testing.assert_close(z.double(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("nope", "no expert 'nope'"),
        ("base", "needs no adapter"),
        ("sst2-after-prompt", "acts after the prompt only"),
        ("sst2=x", "NAME=WEIGHT"),
        ("sst2=0.5,sst2-after-prompt=0.5", "cannot be mixed"),
        ("missing.safetensors", "missing.safetensors"),
    ],
)
def test_refusals_are_one_line(
    choice: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["vllm-export", choice, "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_directories_are_no_experts(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    assert not is_adapter(tmp_path) and not is_adapter(tmp_path / "nothing")
    with pytest.raises(ZweaveError, match="vllm-export"):
        load_adapter(tmp_path)


def test_a_pinned_copy_outlives_what_is_written_over_it(
    random_expert: Callable[..., Expert], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    first, second = (random_expert(SHAPES, seed) for seed in (1, 2))
    save_adapter(first, tmp_path / "a")
    before = pinned_path(tmp_path / "a")
    save_adapter(second, tmp_path / "a")
    after = pinned_path(tmp_path / "a")
    assert before is not None and after is not None and before != after
    assert load_adapter(before).digest == first.digest
    assert load_adapter(after).digest == second.digest
    assert number(before) != number(after)
    # What is pinned stays, and the same content has the same place wherever it came from.
    assert pinned_path(before) == before
    save_adapter(first, tmp_path / "b")
    assert pinned_path(tmp_path / "b") == before
    assert pinned_path(tmp_path) is None


def test_numbers_that_clash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "_NUMBERS", 1)
    monkeypatch.setattr(pinned, "_number_of", {})
    monkeypatch.setattr(pinned, "_digest_of", {})
    monkeypatch.setattr(pinned, "_NUMBERS", 4)
    paths = [Path(f"{index:032x}") for index in range(4)]
    numbers = [number(path) for path in paths]
    assert len(set(numbers)) == 4 and min(numbers) >= 1
    assert [number(path) for path in paths] == numbers


def test_without_vllm_the_plugin_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['vllm'] = None\n"
        "from zweave.integrations.vllm.plugin import register\n"
        "from zweave.errors import ZweaveError\n"
        "try:\n    register()\nexcept ZweaveError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "pip install 'zweave[vllm]'" in done.stdout, done.stderr


def test_the_core_imports_neither_vllm_nor_transformers() -> None:
    code = (
        "import sys\n"
        "import zweave, zweave.engine.engine, zweave.integrations.vllm\n"
        "from importlib import import_module\n"
        "from zweave.cli.parser import COMMANDS\n"
        "for command in COMMANDS:\n    import_module('zweave.cli.' + command.replace('-', '_'))\n"
        "print([name for name in ('vllm', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
