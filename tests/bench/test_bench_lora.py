"""`zweave bench lora`, on a random model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zweave.adapters.peft_directory import read_peft
from zweave.bench.serving.lora import loading
from zweave.bench.serving.lora.lora_peers import alone_peers, batch_peers, compressed_peers
from zweave.bench.serving.peers.lora_files import (
    compressed_changes,
    lora_changes,
    write_compressed,
    write_lora,
)
from zweave.bench.serving.workload import turns
from zweave.checkpoint import Checkpoint
from zweave.cli.main import main

SIZES = ("--dtype", "float32", "--requests", "4", "--prompt", "8", "--new", "6", "--rounds", "1")


def bench(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, list[str], dict]:
    status = main(["bench", "lora", *map(str, args)])
    lines = capsys.readouterr().out.splitlines()
    return status, lines, json.loads(lines[-1])


def test_more_adapters_than_requests_take_turns() -> None:
    assert turns("abcde", 2) == [["a", "b"], ["c", "d"], ["e", "a"]]
    assert turns("ab", 4) == [["a", "b", "a", "b"]]
    assert turns([], 4) == [[]]


def test_who_is_asked() -> None:
    found = dict(batch_peers(["zweave", "vllm"], 64, [1, 128], [8, 32], requests=16))
    assert list(found) == [
        "zweave", "zweave-lora1", "zweave-lora128", "vllm", "vllm-lora0", "vllm-lora8", "vllm-lora32",
    ]  # fmt: skip
    assert found["zweave-lora128"].adapters == 128 and found["zweave-lora128"].rank == 64
    over_one_basis = dict(compressed_peers(32, [8, 128]))
    assert [(peer.adapters, peer.rank) for name, peer in over_one_basis.items() if name != "zweave"] == [
        (8, 32), (128, 32),
    ]  # fmt: skip
    assert found["vllm-lora32"].options == {
        "enable_lora": True, "max_loras": 16, "max_cpu_loras": 32, "max_lora_rank": 64,
    }  # fmt: skip
    assert [peer.adapters for _, peer in alone_peers(16)] == [1, 32]


@pytest.mark.parametrize("rank", [4, 64])
def test_random_adapters_of_any_rank_change_a_matrix_as_much(rank: int, tmp_path: Path) -> None:
    # An element is a sum of products of A, variance 1 / 300, and B, which together have that of rank 16.
    std = pytest.approx(0.02 * (16 / 300) ** 0.5, rel=0.1)
    base = {"model.layers.0.mlp.up_proj": torch.zeros(200, 100)}
    directory = write_lora(tmp_path / "lora", dict.fromkeys(base, (200, 100)), 0, rank)
    (change,) = lora_changes(directory, base).values()
    assert json.loads((directory / "adapter_config.json").read_text())["r"] == rank
    assert change.std().item() == std
    file = write_compressed(tmp_path / "many", dict.fromkeys(base, (200, 100)), 2, rank)
    (change,) = compressed_changes(file, 1, base).values()
    # Of four components the singular values are few draws.
    assert change.std().item() == pytest.approx(std.expected, rel=0.5)


def test_llama_cpp_gets_the_weights_and_adapters(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from zweave.bench.serving.peers.gguf_files import write_gguf, write_gguf_lora

    def tensors(file: Path) -> dict[str, torch.Tensor]:
        return {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(file).tensors}

    checkpoint = Checkpoint(tiny_model("llama", vocab_size=264))
    weights = load_file(checkpoint.directory / "model.safetensors")
    model = tensors(write_gguf(checkpoint, tmp_path / "model.gguf", "float32"))
    assert len(model) == len(weights)
    for theirs, ours in {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
        "blk.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
    }.items():
        assert torch.equal(model[theirs], weights[ours])
    # Heads of 8: rows 0 and 4, 1 and 5 of a head are rotated together, and stand side by side there.
    rows = [head * 8 + i + half * 4 for head in range(4) for i in range(4) for half in range(2)]
    assert torch.equal(model["blk.1.attn_q.weight"], weights["model.layers.1.self_attn.q_proj.weight"][rows])
    keys = weights["model.layers.1.self_attn.k_proj.weight"][rows[:16]]
    assert torch.equal(model["blk.1.attn_k.weight"], keys)

    directory = write_lora(tmp_path / "lora", checkpoint.config.adapted_shapes(), 0, rank=4)
    file = write_gguf_lora(directory, tmp_path / "lora.gguf", checkpoint.config)
    assert gguf.GGUFReader(file).get_field("adapter.lora.alpha").contents() == 4
    found, pairs = tensors(file), read_peft(directory).pairs
    assert len(found) == 2 * len(pairs)
    down, query = (pairs[f"model.layers.1.{name}"] for name in ("mlp.down_proj", "self_attn.q_proj"))
    assert torch.equal(found["blk.1.ffn_down.weight.lora_a"], down.a)
    assert torch.equal(found["blk.1.ffn_down.weight.lora_b"], down.b)
    assert torch.equal(found["blk.1.attn_q.weight.lora_b"], query.b[rows])


@pytest.mark.slow
def test_every_part_answers_right(
    capsys: pytest.CaptureFixture[str], tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.delenv("ZWEAVE_VLLM_PYTHON", raising=False)
    monkeypatch.delenv("ZWEAVE_LLAMA_PYTHON", raising=False)
    monkeypatch.setattr("zweave.bench.serving.peers.llama.find_spec", lambda module: None)
    model = tiny_model("llama", vocab_size=264)
    status, lines, line = bench(
        capsys,
        "--model",
        model,
        *SIZES,
        "--ranks",
        4,
        "--adapters",
        "1,6",
        "--peer-adapters",
        2,
        "--basis",
        20,
    )
    assert status == 0, line["rows"]
    rows = {(row["provider"], row["work"], row["adapters"]): row for row in line["rows"]}
    assert set(rows) == {
        ("zweave", "batch", 0), ("zweave-lora1", "batch", 1), ("zweave-lora6", "batch", 6),
        ("zweave", "compressed", 0), ("zweave-compressed1", "compressed", 1), ("zweave-compressed6", "compressed", 6),
        ("transformers", "batch", 0), ("peft-lora2", "batch", 2),
        ("zweave-alone", "alone", 1), ("zweave-alone", "alone", 32),
        ("zweave step", "no load", 8), ("zweave step", "while loading", 8),
    }  # fmt: skip
    assert all(row["error"] < 0.01 for row in rows.values())
    assert rows["zweave", "batch", 0]["vs_base"] == rows["peft-lora2", "batch", 2]["vs_peft"] == 1
    assert rows["zweave-alone", "alone", 1]["vs_one"] == 1
    assert rows["zweave step", "while loading", 8]["load_seconds"] > 0
    left_out = [text for text in lines if text.startswith("Left out ")]
    assert sum("vllm_environment.sh" in text for text in left_out) == 3
    assert sum("llama_environment.sh" in text for text in left_out) == 2


@pytest.mark.slow
def test_answers_that_a_load_changes_are_refused(
    capsys: pytest.CaptureFixture[str], tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = loading._answer

    def wrong(server: object, files: object) -> object:
        found = right(server, files)
        if files:
            found.answers[0][0] += 1
        return found

    monkeypatch.setattr(loading, "_answer", wrong)
    model = tiny_model("llama", vocab_size=264)
    status, _, line = bench(capsys, "--model", model, *SIZES, "--ranks", 4, "--parts", "loading")
    assert status == 1
    assert [row["status"] for row in line["rows"]] == ["ok", "wrong"]
