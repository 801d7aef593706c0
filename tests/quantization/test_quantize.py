"""`zweave quantize`: what it writes, measures, resumes, and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.checkpoint import Checkpoint
from zweave.checkpoint.module_name import module_name
from zweave.cli.main import main
from zweave.decomposition import decompose
from zweave.decomposition.refit.quantized_model import QuantizedModel
from zweave.decomposition.refit.refit import refit
from zweave.errors import ZweaveError
from zweave.experts import Expert
from zweave.io.progress import silent
from zweave.quantization import quantize as made_by
from zweave.quantization.calibration import read_chunks, second_moments
from zweave.quantization.quantize import quantize_model
from zweave.text.tokenizer import Tokenizer
from zweave.train.run import load_model


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(600)))
    return path


@pytest.fixture
def checkpoint(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Checkpoint:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    return Checkpoint(tiny_model("llama", dtype="bfloat16", hidden_size=64, intermediate_size=96))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def test_moments_are_of_the_inputs(checkpoint: Checkpoint, text: Path) -> None:
    model: Any = load_model(checkpoint, torch.float32)
    chunks, measured = read_chunks(text, Tokenizer(checkpoint.directory), 100)
    assert [len(chunk) for chunk in chunks + measured] == [100] * 6
    query, gate, down = (module_name(1, name) for name in ("q_proj", "gate_proj", "down_proj"))
    key = module_name(1, "k_proj")
    found = second_moments(model, chunks, [query, key, gate, down])
    assert list(found) == [query, gate, down]
    with torch.inference_mode():
        states = torch.cat(
            [model(torch.tensor([c]), output_hidden_states=True).hidden_states[1][0] for c in chunks]
        )
        x = model.model.layers[1].input_layernorm(states).double()
    torch.testing.assert_close(found[query].double(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    assert not model.get_submodule(query)._forward_pre_hooks


def test_again_and_after_an_end_it_gives_the_same_bytes(
    checkpoint: Checkpoint, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, divergence = quantize_model(checkpoint, {}, text, progress=silent)
    written = contents(first.directory)
    assert set(first.errors) == set(checkpoint.adapted_shapes()) and max(first.errors.values()) < 0.02
    assert divergence["base"] < 0.01
    # Opened, not made again.
    monkeypatch.setattr(made_by, "refit", None)
    assert quantize_model(checkpoint, {}, text, progress=silent)[1] == divergence
    monkeypatch.undo()
    monkeypatch.setenv("ZWEAVE_CACHE", str(first.directory.parents[2]))
    # What was killed in the second layer.
    (first.directory / "index.json").unlink()
    for name in written:
        if ".layers.1." in name:
            (first.directory / name).unlink()
    kept = first.directory / f"{module_name(0, 'q_proj')}.safetensors"
    before = kept.stat().st_mtime_ns
    quantize_model(checkpoint, {}, text, progress=silent)
    assert contents(first.directory) == written and kept.stat().st_mtime_ns == before
    quantize_model(checkpoint, {}, text, force=True, progress=silent)
    assert contents(first.directory) == written and kept.stat().st_mtime_ns > before


def test_what_was_killed_while_made_anew_is_not_opened_and_made_whole_later(
    checkpoint: Checkpoint, text: Path, random_expert: Callable[..., Expert], monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = random_expert(checkpoint.adapted_shapes(), 1, base_digest=checkpoint.digest())
    found, _ = quantize_model(checkpoint, {"e": expert}, text, progress=silent)
    written = contents(found.directory)
    made: list[object] = []

    def killed(*arguments: Any) -> Any:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(None)
        return refit(*arguments)

    monkeypatch.setattr(made_by, "refit", killed)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(checkpoint, {}, text, force=True, progress=silent)
    monkeypatch.undo()
    monkeypatch.setenv("ZWEAVE_CACHE", str(found.directory.parents[2]))
    # Nothing that tells of the matrices before.
    assert len(contents(found.directory)) == 3 and not [*found.directory.glob("*.json")]
    with pytest.raises(ZweaveError, match="no refit factors"):
        QuantizedModel.open(checkpoint)
    quantize_model(checkpoint, {"e": expert}, text, progress=silent)
    assert contents(found.directory) == written


@pytest.mark.parametrize("renormalise", [False, True])
def test_divergence_is_that_of_the_merged_models(
    checkpoint: Checkpoint, text: Path, random_expert: Callable[..., Expert], renormalise: bool
) -> None:
    digest = checkpoint.digest()
    expert = random_expert(checkpoint.adapted_shapes(), 1, base_digest=digest, renormalise=renormalise)
    found, divergences = quantize_model(checkpoint, {"e": expert}, text, progress=silent)
    model: Any = load_model(checkpoint, torch.float32)
    chunks = read_chunks(text, Tokenizer(checkpoint.directory), 128)[1]
    factors = decompose(checkpoint)

    def logits(matrix: Callable[[str, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode():
            for module, z in expert.z.items():
                sigma = factors.sigma(module)
                z = z * sigma.sum() / (sigma * z).sum() if renormalise else z
                model.get_submodule(module).weight.copy_(matrix(module, z))
            return torch.cat([model(torch.tensor([c])).logits[0] for c in chunks]).double().log_softmax(-1)

    def merged(module: str, z: torch.Tensor) -> torch.Tensor:
        u, sigma, vt = factors.factors(module)
        return (u * (sigma * z)) @ vt

    exact, rounded = logits(merged), logits(lambda module, z: found.matrix(module).merged(z).float())
    expected = float((exact.exp() * (exact - rounded)).sum(-1).mean())
    assert divergences["e"] == pytest.approx(expected, rel=0.02) and divergences["e"] > 0


def test_the_command(
    checkpoint: Checkpoint, text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, expert = str(checkpoint.directory), str(tmp_path / "e.safetensors")
    assert main(["expert", "new", expert, "--random", "0.3", "--model", model]) == 0
    capsys.readouterr()
    assert main(["quantize", model, "--expert", expert, "--text", str(text), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["matrices"] == 14 and set(figures["kl"]) == {"base", expert}
    assert 0.4 < figures["of_bfloat16"] < 0.9 and 0 < figures["mean_error"] <= figures["max_error"] < 0.02
    plan = ["plan", "--model", model, "--dtype", "float32", "--certify", expert]
    assert main([*plan, "--weights", "refit", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    auto, grid, refit = planned["forms"]
    assert refit["kl"] == {"base": figures["kl"]["base"], expert: figures["kl"][expert]} and auto["kl"] == {}
    assert planned["memory_bytes"] == refit["memory_bytes"] < 0.45 * auto["read_bytes"]["base"]
    assert refit["read_bytes"] == dict.fromkeys(("base", "expert"), refit["memory_bytes"])
    assert min(refit["predicted_us"].values()) > 0 and "has no matrix on a grid" in grid["missing"]
    assert main(plan) == 0 and "KL, nats a token" in capsys.readouterr().out
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    for file, words in ((short, "calibration wants 256 or more"), (tmp_path / "none", "none")):
        assert main(["quantize", model, "--text", str(file)]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert words in line


@pytest.mark.parametrize(
    "damaged", ["index.json", "divergence-base.json", "model.layers.1.mlp.up_proj.safetensors"]
)
def test_a_damaged_entry_is_one_line_and_made_anew(checkpoint: Checkpoint, text: Path, damaged: str) -> None:
    found, before = quantize_model(checkpoint, {}, text, progress=silent)
    (found.directory / damaged).write_bytes(b"{")
    with pytest.raises(ZweaveError, match="zweave quantize MODEL --force"):
        quantize_model(checkpoint, {}, text, progress=silent)[0].matrix("model.layers.1.mlp.up_proj")
    assert quantize_model(checkpoint, {}, text, force=True, progress=silent)[1] == before


def test_an_expert_of_another_model(
    checkpoint: Checkpoint, text: Path, random_expert: Callable[..., Expert]
) -> None:
    expert = random_expert(checkpoint.adapted_shapes(), 1, base_digest="0" * 64)
    with pytest.raises(ZweaveError):
        quantize_model(checkpoint, {"e": expert}, text, progress=silent)
