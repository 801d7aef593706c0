"""`zweave bench gpu-step` without a GPU, and what it predicts."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zweave.bench.serving.gpu.decode_step import DecodeStep
from zweave.bench.serving.gpu.decoders import decoder_config
from zweave.bench.serving.gpu.gpu_step import StepModels, mode_of
from zweave.cli.main import main
from zweave.engine.gpu.backend import ReferenceBackend
from zweave.kernels.triton.pdl import launch_options
from zweave.planner.gpu_cost import StepShape

KEYS = {
    "model", "provider", "status", "error", "seconds", "rounds", "batch", "context", "experts", "tok_s", "vs_ideal",
    "bytes", "predicted_seconds", "predicted_for", "vs_predicted",
}  # fmt: skip


def test_steps_on_the_reference_device(capsys: pytest.CaptureFixture) -> None:
    sizes = ("--shapes", "tiny", "--dtype", "float32", "--batch", "2", "--context", "40", "--experts", "1,64")
    status = main(["bench", "gpu-step", "--device", "reference", *sizes, "--rounds", "1"])
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    assert status == 0, line["rows"]
    assert all(row.keys() >= KEYS for row in line["rows"])
    assert [(row["batch"], row["provider"], row["experts"]) for row in line["rows"]] == [
        (2, "ideal", 0), (2, "dense", 0), (2, "dense dependent", 0),
        (2, "delta", 1), (2, "delta dependent", 1), (2, "delta", 2), (2, "delta dependent", 2),
        (2, "factored", 1), (2, "factored dependent", 1), (2, "factored", 2), (2, "factored dependent", 2),
    ]  # fmt: skip
    for key in ("seconds", "tok_s", "vs_ideal", "bytes", "predicted_seconds", "vs_predicted"):
        assert all(row[key] > 0 for row in line["rows"])
    assert all(row["error"] < 1e-5 for row in line["rows"])
    predicted = {(row["provider"], row["experts"]): row["predicted_seconds"] for row in line["rows"]}
    assert all(predicted[f"{mode} dependent", 1] < predicted[mode, 1] for mode in ("delta", "factored"))
    assert "predicted" in out and "H200" in out and "say nothing" in out


def test_sizes_after_the_limit_are_left_out(capsys: pytest.CaptureFixture) -> None:
    sizes = ("--shapes", "tiny", "--batch", "1", "--context", "8", "--modes", "dense")
    assert main(["bench", "gpu-step", "--device", "reference", *sizes, "--stop-after", "1e-9"]) == 0
    out = capsys.readouterr().out
    assert "Left out 1 rows of 8 tokens" in out and json.loads(out.splitlines()[-1])["rows"] == []


def test_a_step_serves_each_row_its_expert() -> None:
    models = StepModels(decoder_config("tiny"), StepShape(4, 40, 2), torch.float32, ReferenceBackend())
    for mode in map(mode_of, ("delta", "factored")):
        logits = {
            experts: DecodeStep(models.ours, mode, StepShape(4, 40, experts)).logits() for experts in (1, 2)
        }
        same = (logits[1] - logits[2]).abs().amax(1) < 1e-6
        assert same.tolist() == [True, False, True, False]


def test_without_a_gpu_the_command_says_so(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "gpu-step"]) == 1
    assert "--device reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [("--batch", "0"), ("--experts", "1,x"), ("--modes", "ideal,magic"), ("--launches", "x")]
)
def test_options_that_mean_nothing(option: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "gpu-step", *option])
    assert option[0] in capsys.readouterr().err


def test_dependent_steps_are_run_and_checked_with_dependent_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, seen = DecodeStep.logits, []

    def watched(step: DecodeStep) -> Tensor:
        # No index stands for a Hopper.
        seen.append(launch_options(None)["PDL"])
        return logits(step)

    monkeypatch.setattr(DecodeStep, "logits", watched)
    models = StepModels(decoder_config("tiny"), StepShape(2, 40, 1), torch.float32, ReferenceBackend())
    for provider in models.providers(("dense",), 2, 40, (1,), ("plain", "dependent")):
        provider.calls[0]()
        assert provider.error() < 1e-5
        assert len(seen) >= 2 and set(seen) == {provider.name == "dense dependent"}
        seen.clear()


def test_predictions_are_those_of_the_docs(capsys: pytest.CaptureFixture) -> None:
    """Of a GPU that is not there."""
    assert main(["bench", "gpu-step", "--predict"]) == 0
    out = capsys.readouterr().out
    printed = [line.rstrip() for line in out.splitlines() if line.startswith("|")]
    assert len(printed) == 2 + 2 * (8 + 1 + 2)
    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    assert "\n".join(printed) in page
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert "H100, 64 x 512: dense 1.046, wanted 1.05, delta 0.932" in out
    missed = {(row["device"], row["work"]) for row in rows if row["missed"]}
    assert ("H200", "64 x 512") in missed and ("H200", "64 x 512, 64 experts") not in missed
    # By hand: 15 GB at 4.35 TB/s, 4.3 GB at 3.9, 129 products of 4.9 us, 160 small kernels of 2.5 and the rest.
    step = next(row for row in rows if row["work"] == "64 x 512" and row["device"] == "H200")
    ours = 15.01 / 4.35 + 4.295 / 3.9 + 129 * 4.9e-3 + 160 * 2.5e-3 + 0.08
    assert step["dependent_dense"] == pytest.approx(1e3 * step["ideal_seconds"] / ours, rel=0.01)
