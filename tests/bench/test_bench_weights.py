"""`zweave bench weights`: its figures are those of the distributions that the engines serve."""

import json
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zweave.bench.arguments import weights as arguments
from zweave.bench.learning import weights as bench
from zweave.checkpoint import Checkpoint
from zweave.cli.main import main
from zweave.quantization.calibration import read_chunks
from zweave.text.tokenizer import Tokenizer

TEXT = "".join(chr(97 + (i * i + i // 7) % 26) for i in range(150))


def test_figures_on_a_text(
    tiny_model: Callable[..., Path], merged_model: Callable[..., Any], tmp_path: Path
) -> None:
    directory, text = tiny_model("llama"), tmp_path / "text"
    text.write_text(TEXT)
    fields: dict[str, Any] = {"experts": [], "piece": 64, "data": None, "samples": 0, "forms": ["auto"]}
    wanted = Namespace(model=directory, dtypes=["bfloat16"], text=[text], tokens=100, **fields)
    report = bench.run(wanted)
    exact, rounded = report.rows
    assert [row["provider"] for row in report.rows] == ["float32 auto", "bfloat16 auto"]
    tokens = Tokenizer(directory).encode(TEXT, special=False)[:100]
    with torch.inference_mode():
        model = merged_model(directory, {}, None)
        parts = [
            (piece, model(torch.tensor([piece])).logits[0].double()) for piece in (tokens[:64], tokens[64:])
        ]
    losses = [
        torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(p[1:]), reduction="sum")
        for p, logits in parts
    ]
    assert exact["perplexity"] == pytest.approx(math.exp(float(sum(losses)) / 98), rel=1e-4)
    assert (exact["kl_base"], exact["same_base"], exact["change"]) == (0, 1, 0)
    assert 0 < rounded["kl_base"] < 0.01 and rounded["same_base"] > 0.9
    assert rounded["change"] == pytest.approx(rounded["perplexity"] / exact["perplexity"] - 1)


def test_divergence_is_kl_of_what_follows_a_token() -> None:
    draw = torch.Generator().manual_seed(0)

    def log_probabilities() -> Tensor:
        return torch.randn(5, 7, generator=draw).log_softmax(-1)

    found, exact = log_probabilities(), log_probabilities()
    sums = bench.Comparison()
    sums.add(found, exact, [1, 2, 3, 4, 5])
    sums.add(found[:2], exact[:2], [6, 0])
    kl = torch.nn.functional.kl_div(found, exact, reduction="none", log_target=True).sum(-1)
    row = sums.row(bench.BASE)
    assert row["kl_base"] == pytest.approx(float(kl.sum() + kl[:2].sum()) / 7, rel=1e-6)
    chosen = [-float(found[i, token]) for i, token in enumerate([2, 3, 4, 5])] + [-float(found[0, 0])]
    assert row["perplexity"] == pytest.approx(math.exp(sum(chosen) / 5), rel=1e-6)


def test_texts_in_pieces(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer(tiny_model("llama"))
    short, other = tmp_path / "short", tmp_path / "other"
    short.write_text(TEXT[:33])
    other.write_text(TEXT)
    pieces = bench._pieces(Namespace(text=[short, other], tokens=70, piece=32), tokenizer)
    assert [len(piece) for piece in pieces] == [32, 32, 32, 6]
    assert (
        bench._pieces(Namespace(text=[], piece=128), tokenizer)
        == read_chunks(bench.SHIPPED, tokenizer, 128)[1]
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--forms", "int4"), "use auto, grid, refit"),
        (("--dtypes", "float16"), "use float32, bfloat16"),
        (("--experts", "domains"), "use sst2, trec, addition"),
    ],
)
def test_arguments(words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "weights", *words])
    assert told in capsys.readouterr().err
    assert arguments.__doc__


@pytest.mark.slow
@pytest.mark.usefixtures("in_user_cache")
def test_the_default_model_on_its_grid(
    smollm2: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("The committee met on Tuesday to discuss the new budget. " * 3)
    words = ["--dtypes", "float32", "--forms", "grid", "--experts", "addition", "--samples", "12"]
    assert main(["bench", "weights", *words, "--text", str(text), "--tokens", "30", "--json"]) == 0
    exact, grid = json.loads(capsys.readouterr().out)["rows"]
    assert grid["kl_base"] < 1e-6 < grid["kl_addition"] < 2e-3
    assert grid["n"] == 12 and grid["accuracy_addition"] > 0.4 and "accuracy_addition" not in exact
    assert Checkpoint(smollm2).grid_kinds
