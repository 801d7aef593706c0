"""`zweave bench gpu-check` without a GPU: planted mistakes show."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from zweave.bench.kernels import gpu_check
from zweave.cli.main import main
from zweave.engine.gpu.backend import ReferenceBackend
from zweave.kernels import REFERENCE_OPS

KERNELS = {
    "linear", "add_rms_norm", "silu_mul", "scale_by_slot", "add_components", "mix", "sample", "rope_store",
    "prefill_attention", "decode_attention",
}  # fmt: skip
STAGES = {f"{s} {m}" for s in ("qkv", "o", "gate_up", "down") for m in ("dense", "delta", "factored")}


def statuses(capsys: pytest.CaptureFixture, *more: str) -> tuple[int, dict[str, str]]:
    options = (*more, "--device", "reference", "--cases", "1", "--seed", "5", "--dtype", "float32", "--json")
    status = main(["bench", "gpu-check", *options])
    rows = json.loads(capsys.readouterr().out)["rows"]
    return status, {row["provider"]: row["status"] for row in rows}


def test_the_references_are_right(capsys: pytest.CaptureFixture) -> None:
    status, found = statuses(capsys)
    assert status == 0 and set(found.values()) == {"ok"}
    replayed = {f"{name}, replayed" for name in STAGES | {"decode_attention"}}
    assert found.keys() == KERNELS | STAGES | replayed
    assert statuses(capsys, "--eager")[1].keys() == KERNELS | STAGES
    assert not torch.are_deterministic_algorithms_enabled()


def silu_without_gate(gate: Tensor, up: Tensor) -> Tensor:
    return gate.sigmoid() * up


def last_row_left_out(h: Tensor, table: Tensor, slot: Tensor, zero_base: bool = False) -> None:
    REFERENCE_OPS.scale_by_slot(h[:-1], table, slot[:-1], zero_base)


def test_wrong_kernels_are_found(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = replace(REFERENCE_OPS, silu_mul=silu_without_gate, scale_by_slot=last_row_left_out)
    monkeypatch.setattr(ReferenceBackend, "ops", ops)
    status, found = statuses(capsys)
    assert status == 1
    assert {name for name, status in found.items() if status == "wrong"} == {"silu_mul", "scale_by_slot"}


def test_a_graph_that_keeps_its_slots_is_found(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(self: object, work):
        runs = iter([work])
        return lambda: next(runs, lambda: None)()

    monkeypatch.setattr(ReferenceBackend, "capture", once)
    status, found = statuses(capsys)
    wrong = {name for name, status in found.items() if status == "wrong"}
    # The base model's products know no slots.
    assert status == 1 and wrong >= {"decode_attention, replayed"}
    assert wrong == {name for name in found if "replayed" in name and "dense" not in name}


def test_a_kernel_that_raises_stops_no_other(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(ReferenceBackend, "ops", replace(REFERENCE_OPS, rope_store=broken))
    status, found = statuses(capsys)
    assert status == 1 and [name for name, status in found.items() if status != "ok"] == ["rope_store"]


@pytest.mark.exhaustive
def test_the_kernels_in_the_interpreter() -> None:
    """The Triton kernels take what is made for them, and are right, on sizes that the interpreter can do."""
    pytest.importorskip("triton")
    script = """
import sys
from zweave.bench.kernels.check_case import CheckSource
from zweave.cli.main import main
from zweave.engine.gpu.backend import ReferenceBackend
from zweave.kernels import triton_ops
ReferenceBackend.ops = triton_ops()
between = CheckSource.between
CheckSource.between = lambda self, low, high: between(self, low, min(high, 8 * low))
sys.exit(main(["bench", "gpu-check", "--device", "reference", "--cases", "2", "--dtype", "float32"]))
"""
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"})
    assert run.returncode == 0 and "0 of 68 checks went wrong" in run.stdout, run.stdout + run.stderr


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "gpu-check"]) == 1
    assert "--device reference" in capsys.readouterr().err
    assert gpu_check.LIMITS[torch.bfloat16] == 1e-2
