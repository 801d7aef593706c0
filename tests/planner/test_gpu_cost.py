"""What steps on a GPU are predicted to cost, and what a plan for one keeps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zweave.bench.serving.gpu.decoders import decoder_config
from zweave.cli.main import main
from zweave.errors import ZweaveError
from zweave.kernels import LinearMode
from zweave.planner import make_plan
from zweave.planner.gpu_cost import DEVICES, PromptCost, StepCost, StepShape, rates_of
from zweave.planner.gpu_report import InvariancePrice, resident_bytes, step_modes
from zweave.planner.grid_plan import gpu_grids_plan, refit_plan
from zweave.planner.plan import memory

LLAMA = decoder_config("llama3-8b")
PLAN = make_plan(LLAMA.adapted_shapes(), "gpu")
DENSE, DELTA, FACTORED = LinearMode.DENSE, LinearMode.DELTA, LinearMode.FACTORED


@pytest.mark.parametrize(
    ("name", "rows", "context", "per_second"),
    [
        ("ideal", 1, 512, 208),
        ("dense", 1, 512, 240),
        ("delta", 1, 512, 203),
        ("factored", 1, 512, 174),
        ("ideal", 64, 2048, 6741),
        ("factored", 64, 2048, 5894),
    ],
)
def test_a_step_of_an_8b_model(name: str, rows: int, context: int, per_second: float) -> None:
    """Against sums made by hand, which leave out rows of tables and the sum of attention's splits."""
    mode = DENSE if name == "ideal" else LinearMode[name.upper()]
    shape = StepShape(rows, context, 0 if mode == DENSE else 1)
    cost = StepCost.of(LLAMA, PLAN, mode, shape, 2, name == "ideal")
    assert rows / cost.seconds(DEVICES[0]) == pytest.approx(per_second, rel=0.03)


def test_products_of_a_prompt() -> None:
    """2 x 512 x 218.1 M operations a layer at 774 TFLOP/s and four launches; the factors have 1.39 times as many."""
    dense, factored = (
        PromptCost.of(LLAMA, PLAN, mode, 512, 2).seconds(DEVICES[0]) / 32 for mode in (DENSE, FACTORED)
    )
    assert dense == pytest.approx(303e-6, rel=0.01)
    assert factored == pytest.approx(402e-6 + 9 * 3.7e-6 + 21e-6, rel=0.01)
    ours = PromptCost.of(LLAMA, PLAN, FACTORED, 512, 2, by_library=False).seconds(DEVICES[0])
    assert ours > 1.2 * 32 * factored


def test_predictions_go_by_the_device() -> None:
    assert [rates_of(name).name for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "other", None)] == [
        "H100", "H200", "H200", "H200",
    ]  # fmt: skip
    small = decoder_config("smollm2")
    plan = make_plan(small.adapted_shapes(), "gpu")
    cost = StepCost.of(small, plan, FACTORED, StepShape(1, 512, 1), 2)
    assert cost.seconds(DEVICES[0]) < cost.seconds(DEVICES[1])
    assert cost.seconds(DEVICES[0]) < cost.seconds(DEVICES[0], dependent=False)


def test_the_price_of_batch_invariance() -> None:
    price = InvariancePrice.of(LLAMA, 2, DEVICES[0])
    assert price.weights == pytest.approx(1.394, abs=0.001)
    assert 1 < price.decode < price.weights < price.prompt
    assert "predicted" in price.line(DEVICES[0])


def test_what_is_resident() -> None:
    assert sum(resident_bytes(PLAN, 2).values()) == memory(PLAN, 2)
    assert step_modes(PLAN) == [DENSE, DELTA, FACTORED]
    assert step_modes(make_plan(LLAMA.adapted_shapes(), "gpu", batch_invariant=True)) == [FACTORED]


def test_the_command_tells_all_without_a_gpu(tiny_model: Any, capsys: pytest.CaptureFixture) -> None:
    model: Path = tiny_model("llama")
    words = ["plan", "--model", str(model), "--device", "cuda", "--explain"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "resident on a GPU: W" in shown and "predicted, not measured" in shown
    assert main([*words, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    gpu = figures["gpu"]
    assert sum(gpu["resident_bytes"].values()) == figures["memory_bytes"]
    assert gpu["modes"] == ["dense", "delta", "factored"]
    assert [(one["device"], one["mode"]) for one in gpu["predicted"]] == [
        (rates.name, mode) for rates in DEVICES for mode in gpu["modes"]
    ]
    assert all(price["decode"] > 1 for price in gpu["batch_invariant"])


def test_weights_on_a_grid() -> None:
    """Of H100 and H200 by hand: bytes where memory binds, else instructions of the loop."""
    shapes = LLAMA.adapted_shapes()
    plan = gpu_grids_plan(shapes, dict.fromkeys(shapes, "Q4_0"))
    assert step_modes(plan) == [DENSE, DELTA, FACTORED]
    weights = 32 * 218.1e6 + 128256 * 4096
    shape = StepShape(1, 1, 0)
    for rates, seconds in zip(DEVICES, (weights / 2.31e12, weights / 2.31e12), strict=True):
        cost = StepCost.of(LLAMA, plan, DENSE, shape, 2, head_grid="Q4_0")
        assert cost.moved == pytest.approx(0.5625 * weights, rel=1e-3)
        rest = 129 * 2.5e-6 + 6 * 32 * 2.5e-6 + 0.08e-3
        assert cost.seconds(rates) == pytest.approx(seconds + rest, rel=0.01)
        plain = StepCost.of(LLAMA, PLAN, DENSE, shape, 2)
        assert cost.seconds(rates) < plain.seconds(rates)
    # More rows take more instructions.
    many = StepCost.of(LLAMA, plan, DENSE, StepShape(64, 1, 0), 2, head_grid="Q4_0")
    assert many.grids[1] / cost.grids[1] == pytest.approx(255 / 201)
    # A prompt reads the grid, and writes and reads what it stands for.
    prompt = PromptCost.of(LLAMA, plan, DENSE, 512, 2)
    assert prompt.weights == pytest.approx(32 * 218.1e6 * (0.5625 + 4), rel=1e-3)
    assert prompt.small == 7 * 32


def test_what_stays_beside_a_grid() -> None:
    """U and V, unless they do not fit, or results must not depend on the batch: then all of them in int8."""
    shapes = LLAMA.adapted_shapes()
    given = gpu_grids_plan(shapes, dict.fromkeys(shapes, "Q4_0"))
    assert make_plan(shapes, "gpu", given=given) == given
    small = make_plan(shapes, "gpu", max_memory=memory(given, 2) - 1, given=given)
    assert step_modes(small) == [DENSE, DELTA] and {matrix.format for matrix in small.values()} == {"int8"}
    assert {matrix.grid for matrix in small.values()} == {"Q4_0"}
    assert make_plan(shapes, "gpu", batch_invariant=True, given=given) == small
    assert make_plan(shapes, "gpu", max_memory=memory(small, 2), given=given) == small
    with pytest.raises(ZweaveError, match="allow more"):
        make_plan(shapes, "gpu", max_memory=memory(small, 2) - 1, given=given)
    refit = refit_plan(shapes, dict.fromkeys(shapes, ("Q8_0", "Q4_0")))
    assert make_plan(shapes, "gpu", batch_invariant=True, given=refit) == refit


def test_refit_factors() -> None:
    shapes = LLAMA.adapted_shapes()
    plan = refit_plan(shapes, dict.fromkeys(shapes, ("Q8_0", "Q4_0")))
    assert step_modes(plan) == [FACTORED]
    cost = StepCost.of(LLAMA, plan, FACTORED, StepShape(1, 1, 0), 2)
    assert cost.weights == 2 * 128256 * 4096
    assert cost.grids[0] == memory(plan, 2)
    assert PromptCost.of(LLAMA, plan, FACTORED, 512, 2).small == (4 + 14) * 32


def test_the_command_of_a_model_on_a_grid(
    tiny_model: Any, to_grid: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = tiny_model("llama", hidden_size=64, intermediate_size=96)
    model = to_grid(source, tmp_path / "model", lambda name: "Q4_1")
    words = ["plan", "--model", str(model), "--device", "cuda", "--weights", "grid", "--explain"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "predicted, not measured" in shown and "batch_invariant" not in shown
    assert main([*words, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["gpu"]["modes"] == ["dense", "delta", "factored"] and not figures["gpu"]["batch_invariant"]
    assert {row["grid"] for row in figures["shapes"]} == {"Q4_1"}
    assert figures["gpu"]["resident_bytes"]["W"] == pytest.approx(
        0.625 * sum(row["count"] * row["shape"][0] * row["shape"][1] for row in figures["shapes"])
    )
