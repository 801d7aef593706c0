"""`zweave bench transfer`: its small models, the rounded copy, and its rows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zweave.bench.learning import twins
from zweave.bench.learning.rounded import rounded, write_rounded
from zweave.bench.learning.twins import TASK, make_model
from zweave.checkpoint import Checkpoint
from zweave.cli.main import main
from zweave.tasks import prompt_ids
from zweave.text import Tokenizer

pytest.importorskip("transformers")


def bench(capsys: pytest.CaptureFixture, *args: object) -> tuple[int, list[str], dict[str, dict]]:
    status = main(["bench", "transfer", *map(str, args)])
    lines = capsys.readouterr().out.splitlines()
    return status, lines, {row["provider"]: row for row in json.loads(lines[-1])["rows"]}


def test_no_line_of_the_corpus_holds_a_prompt_of_the_test() -> None:
    tested = {sample.prompt for sample in TASK.samples("test")}
    lines = torch.cat([twins._lines(torch.Generator().manual_seed(seed)) for seed in range(40)])
    words = {"".join(chr(ord("a") + letter) for letter in row) for row in (lines[:, :4] - 3).tolist()}
    assert len(words) > 8000 and not any(f"{word}=" in tested for word in words)
    letters, answers = lines[:, :4], lines[:, 5]
    for place, share in zip(twins.PLACES, twins.SHARES, strict=True):
        # Another letter is the same one in 26.
        found = (letters[:, place] == answers).float().mean().item()
        assert found == pytest.approx(share + (1 - share) / 26, abs=0.02)


def test_a_small_model_learns_and_follows_its_seed(tmp_path: Path) -> None:
    done: list[int] = []
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        make_model(tmp_path / name, seed, 3, done.append)
    assert done == [1, 2, 3] * 3
    digests = [Checkpoint(tmp_path / name).digest() for name in ("a", "again", "b")]
    assert digests[0] == digests[1] != digests[2]
    tokenizer = Tokenizer(tmp_path / "a")
    assert prompt_ids(tokenizer, "abz=") == [3, 4, 28, 2]
    assert [tokenizer.encode(label, special=False) for label in TASK.labels] == [[i] for i in range(3, 29)]


def test_rounding_is_to_the_nearest_of_255_values_a_row() -> None:
    weight = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    found = rounded(weight)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((found - weight).abs() <= step / 2 + 1e-6).all()
    for row in (0, 1, 2, 4):
        assert len(found[row].unique()) <= 255 and not torch.equal(found[row], weight[row])
    assert (found[3] == 0).all()


def test_a_rounded_copy_differs_in_its_adapted_matrices_alone(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = Checkpoint(tiny_model("llama", dtype="bfloat16"))
    write_rounded(source, tmp_path)
    copy = Checkpoint(tmp_path)
    assert copy.config.adapted_shapes() == source.config.adapted_shapes()
    adapted = {f"{module}.weight" for module in source.config.adapted_shapes()}
    for name in source.names():
        assert torch.equal(copy.tensor(name).float(), source.tensor(name).float()) == (name not in adapted)


def test_two_seeds(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    status, lines, rows = bench(capsys, "--pretraining", 60, "--steps", 6, "--samples", 40, "--controls", 2)
    assert status == 0
    assert not (tmp_path / "cache").exists()
    accuracies = [provider for provider, row in rows.items() if "accuracy" in row]
    assert accuracies == [
        "A, base", "A, its expert", "B, base", "B, the expert carried over", "B, z shuffled", "B, an expert of its own",
    ]  # fmt: skip
    assert rows["B, z shuffled"]["runs"] == 2 and {rows[name]["n"] for name in accuracies} == {40}
    # Leading components of models that have nothing in common.
    assert abs(rows["up_proj"]["subspace"] - rows["up_proj"]["chance"]) < 0.1
    assert rows["up_proj"]["aligned"] == 0
    assert sum(line.startswith("| seeds") for line in lines) == 13


def test_a_rounded_copy(
    capsys: pytest.CaptureFixture, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model, expert = tiny_model("llama"), tmp_path / "e.safetensors"
    assert main(["expert", "new", str(expert), "--random", "0.3", "--model", str(model)]) == 0
    capsys.readouterr()
    options = ("--pairs", "rounded", "--model", model, "--expert", expert, "--samples", 5, "--controls", 1)
    status, _, rows = bench(capsys, *options, "--dtype", "float32")
    assert status == 0
    assert list(rows)[:5] == [
        "model, base", "model, its expert", "copy, base", "copy, the expert carried over", "copy, z shuffled",
    ]  # fmt: skip
    assert all(row["subspace"] > 0.98 for row in rows.values() if "subspace" in row)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--pairs", "rounded", "--expert", "nobody"), "there is no expert 'nobody'"),
        (("--pairs", "rounded", "--expert", "sst2"), "trained for other weights"),
        (("--pairs", "rounded", "--task", "sst2", "--data", "/nowhere"), "sst2_train.tsv is missing"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture, tiny_model: Callable[..., Path], args: tuple[str, ...], words: str
) -> None:
    model = str(tiny_model("llama"))
    capsys.readouterr()
    assert main(["bench", "transfer", *args, "--model", model]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and words in errors[0]
