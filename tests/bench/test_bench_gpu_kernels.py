"""The benches of GPU kernels without a GPU: what they compute, count, predict and refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from zweave.bench.harness.fit import Fit
from zweave.bench.harness.harness import Pace, Provider, row_error
from zweave.bench.kernels import gpu_attention, gpu_roofs
from zweave.bench.kernels.attention_case import AttentionCase, Heads
from zweave.bench.kernels.gpu_products import predicted
from zweave.bench.kernels.layer_sums import layer_rows
from zweave.bench.kernels.stage_forms import decode_call, stage_forms
from zweave.bench.kernels.stages import STAGES, Stage
from zweave.bench.serving.gpu.decoders import decoder_config
from zweave.cli.main import main
from zweave.kernels import REFERENCE_OPS, LinearMode
from zweave.kernels.linear import linear_ref
from zweave.kernels.svf_delta_linear import svf_delta_linear_ref
from zweave.kernels.svf_linear import svf_linear_ref
from zweave.kernels.triton import gemm_config
from zweave.kernels.triton.pdl import launch_options
from zweave.planner.gpu_cost import DEVICES

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
HOPPER = gemm_config.Device((9, 0), 132)


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roofs and copies of a machine with hardly a cache."""
    for module in ("harness.cpu_roofs", "kernels.attention_case", "kernels.stages"):
        monkeypatch.setattr(f"zweave.bench.{module}.cache_bytes", lambda device="cpu": 1 << 14)
    monkeypatch.setattr("zweave.bench.harness.cpu_roofs.PRODUCTS", ((64, 64, 64),))
    monkeypatch.setattr("zweave.bench.harness.cpu_roofs.roof_providers.__defaults__", (1 << 20,))


def bench(capsys: pytest.CaptureFixture, name: str, *options: object) -> tuple[int, str, list[dict]]:
    status = main(["bench", name, "--device", "reference", *map(str, options), "--rounds", "1"])
    out = capsys.readouterr().out
    return status, out, json.loads(out.splitlines()[-1])["rows"]


def test_roofs_on_the_reference_device(capsys: pytest.CaptureFixture) -> None:
    status, out, rows = bench(capsys, "gpu-roofs", "--tokens", "2,4")
    assert status == 0 and "say nothing" in out
    assert [(row["provider"], row.get("T")) for row in rows] == [
        ("read, torch.sum", None), ("cuBLAS", 2), ("cuBLAS", 4), ("launch", None), ("dependent launch", None),
    ]  # fmt: skip
    assert rows[0]["gb_s"] == pytest.approx(64 * 4096 * 4 / rows[0]["seconds"] / 1e9, rel=1e-4)
    assert rows[2]["gflop_s"] == pytest.approx(2 * 4 * 96 * 64 / rows[2]["seconds"] / 1e9, rel=1e-4)


@pytest.mark.slow
def test_roofs_need_nothing_that_is_built() -> None:
    """As `python bench/gpu.py` starts them beside the build; their kernels in the interpreter."""
    pytest.importorskip("triton")
    script = """
import sys
sys.modules["zweave"] = None
sys.path.insert(0, sys.argv[1])
import torch
from bench.harness import gpu_probes
from bench.harness.harness import Pace
from bench.kernels.gpu_roofs import main, report
assert len(report("reference", [2], Pace(1)).rows) == 4
gpu_probes.READ_BY_PROGRAM = 1 << 13
x = torch.randn(3, 1 << 13, generator=torch.Generator().manual_seed(0))
y, n = torch.full((3,), float("nan")), torch.zeros(1)
gpu_probes.sum_triton(x, y)
torch.testing.assert_close(y, x.sum(1), rtol=1e-4, atol=1e-3)
gpu_probes.count_triton(n, False)
assert n.item() == 1
sys.exit(main())
"""
    run = subprocess.run(
        [sys.executable, "-P", "-c", script, str(ROOT)], capture_output=True, text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (1, "gpu-roofs: no CUDA device is available to this torch\n")


def test_a_roof_that_leaves_numbers_out_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_roofs, "_torch_sum", lambda x, y: torch.sum(x[:, 1:], 1, out=y).mul_(0.9))
    rows = gpu_roofs.report("reference", [], Pace(1)).rows
    assert [row["status"] for row in rows] == ["wrong", "ok", "ok"]


def test_a_dependent_launch_waits_before_it_writes() -> None:
    triton = pytest.importorskip("triton")
    from zweave.bench.harness.gpu_probes import _count_kernel

    source = triton.compiler.ASTSource(_count_kernel, {"x": "*fp32", "PDL": "constexpr"}, {(1,): True})
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    ptx = triton.compile(source, target=target, options={"num_warps": 1, "launch_pdl": True}).asm["ptx"]
    assert 0 < ptx.index("griddepcontrol.wait") < ptx.index("st.global")


def test_attention_on_the_reference_device(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    sizes = ("--shapes", "tiny", "--batch", "1,3", "--context", 70, "--prompt", 40, "--dtype", "float32")
    plot = tmp_path / "roofline.png"
    status, out, rows = bench(capsys, "gpu-attention", *sizes, "--plot", plot)
    assert status == 0, rows
    assert "Left out torch varlen_attn" in out and plot.read_bytes().startswith(b"\x89PNG")
    assert [(row["kind"], row["batch"], row["context"], row["provider"]) for row in rows] == [
        (kind, batch, context, provider)
        for kind, batch, context in (("decode", 1, 70), ("decode", 3, 70), ("prefill", 2, 40))
        for provider in ("zweave", "torch SDPA")
    ]
    for row in rows:
        assert row["error"] < 1e-5 and row["seconds"] > 0 and row["roof_pct"] > 0
        assert ("predicted_seconds" in row) is (row["provider"] == "zweave")
    # Keys and values of 3 x 70 positions under 2 heads of 16, queries and results of 3 x 4 heads, four bytes each.
    moved = 4 * (2 * 3 * 70 * 2 * 16 + 2 * 3 * 4 * 16)
    assert rows[2]["gb_s"] == pytest.approx(moved / rows[2]["seconds"] / 1e9, rel=1e-4)
    assert rows[2]["predicted_seconds"] == pytest.approx(moved / 3.9e12 + 5e-6, rel=1e-4)
    # A query of two prompts of 40 sees 1, 2, ... 40 positions: two products of 16 numbers for each of 4 heads.
    flops = 2 * (40 * 41 // 2) * 4 * 2 * 2 * 16
    assert rows[4]["gflop_s"] == pytest.approx(flops / rows[4]["seconds"] / 1e9, rel=1e-4)


def test_attention_that_leaves_a_position_out_is_refused(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gpu_attention.backend_of

    def short(device: str):
        backend = right(device)
        ops = REFERENCE_OPS

        def decode(q, k, v, table, position, scale):
            return ops.decode_attention(q, k, v, table, position - 1, scale)

        backend.ops = type("Ops", (), {"decode_attention": staticmethod(decode)})()
        return backend

    monkeypatch.setattr(gpu_attention, "backend_of", short)
    sizes = ("--shapes", "tiny", "--batch", 2, "--context", 33, "--kinds", "decode", "--dtype", "float32")
    status, _, rows = bench(capsys, "gpu-attention", *sizes)
    assert status == 1 and [row["status"] for row in rows] == ["wrong", "ok"]


def test_copies_of_a_case_share_no_block() -> None:
    case = AttentionCase.of(Heads(4, 2, 16), 2, 33, torch.float32, CPU)
    assert len(case.tables) == 2 and sorted(case.tables.flatten().tolist()) == list(range(len(case.keys)))
    k, _ = case.in_one_piece(1)
    assert k.shape == (2, 2, 33, 16)
    block = case.tables[1, 0, 1].item()
    assert torch.equal(k[0, 1, 32:], case.keys[block, 1, :1])


def test_products_on_the_reference_device(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    sizes = ("--shapes", "tiny", "--tokens", "1,5", "--experts", 3, "--splits", 1, "--dtype", "float32")
    plot = tmp_path / "roofline.png"
    status, out, rows = bench(capsys, "gpu-products", *sizes, "--plot", plot)
    assert status == 0, rows
    assert "Left out CUDA decode" in out and plot.read_bytes().startswith(b"\x89PNG")
    forms = ("cuBLAS", "Triton", "Triton PDL", "Triton PDL, 1 splits")
    names = {f"{form} {mode}" for form in forms for mode in ("dense", "delta", "factored")}
    for stage in (*STAGES, "layer"):
        assert {row["provider"] for row in rows if (row["T"], row["stage"]) == (5, stage)} == names
    assert all(row["error"] < 1e-5 for row in rows if row["stage"] != "layer")
    layer = {row["provider"]: row for row in rows if row["stage"] == "layer" and row["T"] == 5}
    assert layer["cuBLAS dense"]["vs_cublas"] == 1 and layer["Triton factored"]["E"] == 3
    parts = [row for row in rows if row["T"] == 5 and row["provider"] == "Triton PDL delta"]
    assert layer["Triton PDL delta"]["seconds"] == pytest.approx(
        sum(p["seconds"] for p in parts[:-1]), rel=1e-4
    )
    assert layer["Triton PDL delta"]["vs_predicted"] > 0 and "predicted_seconds" not in layer["cuBLAS dense"]


def test_outputs_of_products_alone(capsys: pytest.CaptureFixture) -> None:
    sizes = ("--shapes", "tiny", "--tokens", 5, "--stages", "qkv", "--modes", "delta", "--check")
    status, _, rows = bench(capsys, "gpu-products", *sizes)
    assert status == 0 and len(rows) == 3 and all(row["seconds"] is None for row in rows)


def test_a_product_under_the_wrong_expert_is_refused(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Stage.truth
    monkeypatch.setattr(Stage, "truth", lambda self, x, slot, mode: right(self, x, slot.clamp(max=1), mode))
    sizes = ("--shapes", "tiny", "--tokens", 2, "--stages", "o", "--experts", 2, "--check")
    status, _, rows = bench(capsys, "gpu-products", *sizes)
    assert status == 1
    assert {row["status"] for row in rows if "dense" in row["provider"]} == {"ok"}
    assert {row["status"] for row in rows if "dense" not in row["provider"]} == {"wrong"}


def test_stages_that_arguments_name_are_those_that_there_are() -> None:
    from zweave.bench.arguments import gpu_engine as engine_arguments
    from zweave.bench.arguments import gpu_products as products_arguments
    from zweave.bench.serving.gpu.gpu_engine import NAMES
    from zweave.bench.serving.gpu.gpu_peers import PEERS

    assert tuple(STAGES) == products_arguments.STAGES
    assert (*NAMES, *PEERS) == engine_arguments.PROVIDERS


def stage(name: str) -> Stage:
    return Stage.of(name, decoder_config("tiny"), 4, torch.float32, CPU, REFERENCE_OPS)


def test_bytes_and_operations_of_a_stage() -> None:
    """Hidden 32, intermediate 48; gate and up have rank 32, and deltas of 4 components."""
    gate_up, T, E = stage("gate_up"), 5, 3
    dense = 2 * 48 * 32
    factored = 2 * 32 * (32 + 48)
    delta = dense + 2 * 4 * (32 + 48)
    for mode, elements, between in (
        (LinearMode.DENSE, dense, 0), (LinearMode.FACTORED, factored, 64), (LinearMode.DELTA, delta, 8),
    ):  # fmt: skip
        cost = gate_up.cost(mode, T, E if between else 0)
        assert cost.flops == 2 * T * elements
        assert (
            cost.moved == 4 * (elements + T * (32 + 48 + 2 * between)) + 4 * (E if between else 0) * between
        )
    qkv = stage("qkv").cost(LinearMode.DENSE, 1, 0)
    assert qkv.moved == 4 * (128 * 32 + 32 + 128)


@pytest.mark.parametrize("mode", list(LinearMode)[:3])
@pytest.mark.parametrize("name", STAGES)
def test_stages_without_groups_give_what_grouped_ones_do(name: str, mode: LinearMode) -> None:
    made = stage(name)
    assert len(made.copies) > 1
    x = torch.randn(6, made.inputs, generator=torch.Generator().manual_seed(0))
    slot = torch.tensor([0, 1, 2, 3, 1, 0], dtype=torch.int32)
    call = decode_call(made.copies[0], mode, linear_ref, svf_linear_ref, svf_delta_linear_ref)
    for y in (call(x, slot), made.copies[0](x, slot, mode)):
        assert row_error(y, made.truth(x, slot, mode)) < 1e-5


def test_forms_launch_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zweave.kernels.triton.pdl.device_of", lambda index: HOPPER)
    seen = []

    def grouped(x: Tensor, weights: object, **options: object) -> Tensor:
        seen.append((launch_options(0)["PDL"], gemm_config.split_size(4096, 4096, HOPPER)))
        return x

    made = stage("o")
    ops = type("Ops", (), {"grouped_linear": staticmethod(grouped)})()
    object.__setattr__(made.copies[0], "ops", ops)
    forms = {form.name: form for form in stage_forms([1, 2])}
    for name in ("Triton", "Triton PDL", "Triton PDL, 1 splits", "Triton PDL, 2 splits"):
        forms[name].calls(made, LinearMode.DENSE)[0](torch.zeros(1, 64), torch.zeros(1, dtype=torch.int32))
    assert seen == [(False, 1024), (True, 1024), (True, 4096), (True, 2048)]
    assert not launch_options(0)["PDL"] and gemm_config.split_size(4096, 4096, HOPPER) == 1024


def test_predictions_count_launches_and_bytes() -> None:
    def at(name: str, tokens: int) -> float | None:
        provider = Provider(name, [], lambda: 0.0, 0.0, labels={"T": tokens}, moved=4.35e6)
        return predicted(provider, stage_forms([1]), DEVICES[0])

    assert at("Triton dense", 64) == pytest.approx(1e-6 + 5.7e-6)
    assert at("Triton PDL factored", 1) == pytest.approx(1e-6 + 2.5e-6 + 1e-6)
    assert at("Triton dense", 512) is at("cuBLAS dense", 1) is at("Triton PDL, 1 splits dense", 1) is None


def test_a_line_through_times_over_bytes() -> None:
    moved = np.array([8.4e6, 33.5e6, 117e6, 235e6])
    noise = 1 + 0.01 * np.array([1, -1, 1, -1])
    fit = Fit.of(moved, 5.7e-6 + moved / 4.35e12)
    assert fit is not None and (fit.fixed, fit.rate) == (pytest.approx(5.7e-6), pytest.approx(4.35e12))
    fit = Fit.of(moved, (5.7e-6 + moved / 4.35e12) * noise)
    assert fit is not None and fit.fixed == pytest.approx(5.7e-6, rel=0.2)
    assert fit.rate == pytest.approx(4.35e12, rel=0.05)
    assert Fit.of([1e6, 1e6], [1.0, 2.0]) is None and Fit.of([], []) is None
    flat = Fit.of([1e6, 2e6], [2e-6, 2e-6])
    assert (
        flat is not None and (flat.fixed, flat.rate) in ((pytest.approx(2e-6), None),)
    ) or flat.rate > 1e15


def test_a_layer_is_the_sum_of_its_stages() -> None:
    def row(provider: str, stage: str, seconds: float | None, moved: float) -> dict:
        return {"provider": provider, "status": "ok", "T": 1, "E": None, "stage": stage, "seconds": seconds,
                "moved": moved, "flops": 2 * moved}  # fmt: skip

    rows = [row("cuBLAS dense", "o", 2e-5, 1e7), row("cuBLAS dense", "down", 4e-5, 3e7)]
    rows += [row("Triton dense", "o", 1e-5, 1e7), row("Triton dense", "down", 5e-5, 3e7)]
    rows += [row("CUDA decode dense", "o", 1e-5, 1e7), row("CUDA decode dense", "down", None, 3e7)]
    cublas, triton = layer_rows(rows, 2)
    assert (cublas["seconds"], triton["vs_cublas"]) == (pytest.approx(6e-5), pytest.approx(1))
    # 20 us for 10 MB, 40 us for 30 MB.
    assert (cublas["fixed_seconds"], cublas["asymptote_gb_s"]) == (pytest.approx(1e-5), pytest.approx(1e3))
    assert layer_rows(rows, 4) == [] == layer_rows(rows[:1], 1)


@pytest.mark.parametrize("name", ["gpu-roofs", "gpu-products", "gpu-attention"])
def test_without_a_gpu_a_bench_says_so(
    name: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", name]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["gpu-products", "gpu-attention"])
def test_cases_after_the_limit_are_left_out(name: str, capsys: pytest.CaptureFixture) -> None:
    status, out, rows = bench(capsys, name, "--shapes", "tiny", "--stop-after", "1e-9")
    assert (status, rows) == (0, []) and "Left out" in out
