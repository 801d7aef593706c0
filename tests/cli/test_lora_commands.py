"""Commands take a LoRA's directory wherever they take an expert to serve, and refuse it where they want z."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zweave import Engine, Request
from zweave.checkpoint import ModelConfig
from zweave.cli.main import main
from zweave.experts import Expert

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


@pytest.fixture
def model(tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    return str(tiny_model("llama", vocab_size=96))


@pytest.fixture
def lora(save_lora: Callable[..., Any]) -> Path:
    return save_lora("one", 1, r=4, merge=False)[0]


@pytest.fixture
def expert(model: str, tmp_path: Path, random_expert: Callable[..., Expert]) -> Path:
    file = tmp_path / "e.safetensors"
    random_expert(ModelConfig.from_directory(Path(model)).adapted_shapes(), seed=1).save(file)
    return file


def test_requests_name_loras_alone_and_mixed_with_experts(
    model: str, lora: Path, expert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices: list[Any] = ["one", str(lora), {"one": 0.5, "e": 0.5}, "e", None]
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"prompt": "hello", "expert": choice}) + "\n" for choice in choices)
    )
    options = ["--model", model, "--dtype", "float32", "--max-tokens", "6", "--kv-tokens", "512"]
    loads = ["--load", f"one={lora}", "--load", f"e={expert}"]
    command = ["generate", "--jsonl", "--input", str(tmp_path / "in.jsonl"), *options]
    assert main([*command, *loads, "--lora-components", "16"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [one["token_ids"] for one in sorted(results, key=lambda one: one["index"])]
    engine = Engine(model, dtype="float32", kv_tokens=512)
    for name, path in (("one", lora), ("e", expert), (str(lora), lora)):
        engine.load_expert(name, path)
    asked = [Request("hello", expert=choice, max_tokens=6) for choice in choices]
    assert told == [result.token_ids for result in engine.generate(asked)]
    assert told[0] == told[1] and len(set(map(tuple, told))) == 4
    assert main([*command, *loads, "--lora-components", "0"]) == 1
    assert "'one' is a LoRA, and this engine keeps no components of LoRAs" in capsys.readouterr().err


def test_trace_shows_requests_under_loras(model: str, lora: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "hello", "expert": "one", "max_tokens": 2}))
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "t.json")]
    assert main(["trace", *files, "--load", f"one={lora}", "--model", model, "--kv-tokens", "512"]) == 0
    assert '"one"' in (tmp_path / "t.json").read_text()


def test_show(save_lora: Callable[..., Any], capsys: pytest.CaptureFixture[str], model: str) -> None:
    options = {"r": 2, "lora_alpha": 6, "rank_pattern": {"up_proj": 5}, "alora_invocation_tokens": [7, 9]}
    directory, _ = save_lora(
        "one", 1, merge=False, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **options
    )
    template = {"version": 1, "user": "Say {text}"}
    record = {"scope": "after_prompt", "description": "mine\x1b", "prompt_template": template}
    (directory / "zweave.json").write_text(json.dumps(record))
    assert main(["expert", "show", str(directory), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = {
        "kind": "lora", "base": model, "rank": 5, "alpha": 6, "rslora": False, "first_layer": 0,
        "targets": ["q_proj", "up_proj"], "scope": "after_prompt", "invocation_tokens": [7, 9],
        "description": "mine\x1b", "adapted": 4,
    }  # fmt: skip
    assert expected.items() <= told.items() and told["prompt"]["user"] == "Say {text}"
    tensors = load_file(directory / "adapter_model.safetensors")
    assert told["bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    matrices = {matrix["module"]: matrix for matrix in told["matrices"]}
    for module, rank in ((Q, 2), (UP, 5)):
        a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"].double() for part in "AB")
        matrix = matrices[module]
        assert (matrix["rank"], matrix["shape"]) == (rank, [len(b), a.shape[1]])
        assert matrix["norm"] == pytest.approx(float(torch.linalg.matrix_norm(6 / rank * b @ a)))
    assert main(["expert", "show", str(directory)]) == 0
    printed = capsys.readouterr().out
    assert told["digest"] in printed and "\x1b" not in printed and "[7, 9]" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["0", f"{matrices[Q]['norm']:.3f}", *["-"] * 4] in [row[:6] for row in rows]
    assert ["1", "2", "-", "-", "-", "-", "5", "-"] in rows


@pytest.mark.parametrize(
    "command",
    [
        ("expert", "mix", "x.safetensors", "LORA=0.5", "EXPERT=0.5"),
        ("expert", "diff", "EXPERT", "LORA"),
        ("expert", "transfer", "LORA", "x.safetensors", "--from", "MODEL", "--to", "MODEL"),
        (
            "expert",
            "search",
            "letters.jsonl",
            "--experts",
            "EXPERT",
            "LORA",
            "--out",
            "x",
            "--model",
            "MODEL",
        ),
        ("plan", "--model", "MODEL", "--certify", "LORA"),
        ("vllm-export", "LORA", "--output", "x"),
    ],
    ids=["mix", "diff", "transfer", "search", "plan", "vllm-export"],
)
def test_what_wants_z_refuses_a_lora_in_one_line(
    command: tuple[str, ...],
    model: str,
    lora: Path,
    expert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [{"labels": ["a", "b"]}, *({"prompt": str(i), "answer": "ab"[i % 2]} for i in range(40))]
    Path("letters.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, path in (("LORA", lora), ("EXPERT", expert), ("MODEL", model)):
        command = tuple(word.replace(name, str(path)) for word in command)
    assert main(command) == 1
    told = capsys.readouterr().err
    assert f"{lora}: is a LoRA, and this takes experts" in told and told.count("\n") == 1


def test_refusals_of_show_and_of_directories_that_are_no_loras(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    (tmp_path / "empty").mkdir()
    for words, told in (
        (["show", str(lora), "--png", str(tmp_path / "x.png")], "--png draws z"),
        (["show", str(tmp_path / "empty")], "is a directory without adapter_config.json"),
        (["show", str(lora / "adapter_model.safetensors")], "give a LoRA's directory, not a file in it"),
    ):
        assert main(["expert", *words]) == 1
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1
    assert main(["generate", "x", "--expert", str(tmp_path / "empty"), "--model", model]) == 1
    assert "is a directory without adapter_config.json" in capsys.readouterr().err


def test_an_expert_exported_for_vllm_is_served_as_the_expert_that_it_is(
    model: str, expert: Path, tmp_path: Path
) -> None:
    assert main(["vllm-export", str(expert), "--output", str(tmp_path / "exported")]) == 0
    engine = Engine(model, dtype="float32", kv_tokens=512)
    engine.load_expert("x", tmp_path / "exported")
    assert engine.bank.registered("x").digest == Expert.load(expert).digest


def test_plan_counts_what_resident_loras_take(
    model: str, save_lora: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "--model", model, "--dtype", "float32"]
    assert main([*command, "--lora-components", "70", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    engine = Engine(model, dtype="float32", kv_tokens=512, lora_components=70)
    pool = engine.bank.components
    pages = [pool.linear(module) for module in pool.shapes]
    assert figures["lora_bytes"] == sum(page.vt.nbytes + page.u.nbytes for page in pages) > 0
    assert main(command) == 0
    assert "LoRAs besides: at most 2 MiB" in capsys.readouterr().out
    assert main([*command, "--device", "cuda", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lora_bytes"] == 0
