"""Every form that the linear benches compare computes what it says, and a wrong one is caught."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import Tensor

from zweave.bench.harness.harness import Pace, measure
from zweave.bench.kernels import gpu_forms, linear_forms
from zweave.bench.kernels.gpu_forms import svf_linear_naive
from zweave.bench.kernels.grouped_lora import Groups, grouped_lora, grouped_lora_ref
from zweave.bench.kernels.linear import ALL, prepare
from zweave.bench.kernels.linear_case import Operands
from zweave.bench.kernels.linear_forms import FORMS, ONCE
from zweave.bench.kernels.mix import mix_providers
from zweave.bench.kernels.shapes import Shape
from zweave.kernels import svf_linear_ref

SHAPES = [Shape("m", "wide", 33, 70), Shape("m", "tall", 130, 48)]


@pytest.fixture(autouse=True)
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy or two of the weights, whatever the machine's cache."""
    monkeypatch.setattr("zweave.bench.kernels.linear_case.cache_bytes", lambda device="cpu": 4096)


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Tensor]]:
    """Runs a launcher in a process whose Triton interprets."""
    pytest.importorskip("triton")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(max, 1, 2).result()
        yield lambda function, *args: pool.submit(function, *args).result()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_ways_agree_with_float64(shape: Shape, dtype: torch.dtype) -> None:
    operands = Operands(shape, tokens=17, experts=5, dtype=dtype)
    missing: dict[str, str] = {}
    prepared = prepare(operands, ALL, missing)
    assert not missing
    for name, at in prepared.items():
        for T, E in [(1, 1), (17, 1)] + [(17, 5)] * (name not in ONCE):
            outcome = measure([at(T, E)], Pace(rounds=1))[0]
            assert outcome.status == "ok", (name, T, E, outcome.note)


@pytest.mark.parametrize("name", ["factored", "dense", "LoRA bmm", "recompose"])
def test_a_planted_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operands = Operands(SHAPES[0], tokens=4, experts=2, dtype=torch.bfloat16)
    at = FORMS[name](operands)
    operands.__dict__["scale"] = operands.scale * torch.tensor([[1.0], [1.02]])
    operands.__dict__["w"] = operands.w + 0.02
    right = at(4, 2).error()
    call = linear_forms.F.linear
    monkeypatch.setattr(linear_forms.F, "linear", lambda x, w: call(x, w) * 1.02)
    monkeypatch.setattr(linear_forms, "svf_linear", lambda x, *rest: svf_linear_ref(x * 1.02, *rest))
    wrong = at(4, 2)
    if name in ("LoRA bmm", "recompose"):
        assert wrong.error() > wrong.limit
    else:
        assert name == "factored" or right > wrong.limit
        assert measure([wrong], Pace(rounds=1))[0].status != "ok"


def test_large_recompositions_are_timed_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_forms, "RECOMPOSED_FLOPS", 1.0)
    operands = Operands(Shape("m", "q", 256, 32), tokens=8, experts=4, dtype=torch.float32)
    provider = linear_forms.recompose(operands)(8, 4)
    assert provider.share == 64 / 256 / 4
    assert provider.calls[0]().shape == (2, 64)
    assert provider.error() <= provider.limit


def test_mixtures_are_right() -> None:
    outcomes = measure(mix_providers(3, 2, 1001), Pace(rounds=1))
    assert [outcome.status for outcome in outcomes] == ["ok"] * 3


def test_groups_hold_every_token_once_and_adapters_apart() -> None:
    adapter = torch.tensor([2, 0, 2, 1, 0] * 9)
    groups = Groups.of(adapter)
    seen: list[int] = []
    for index, first, end in groups.tiles.T.tolist():
        tokens = groups.order[first:end].tolist()
        assert 1 <= len(tokens) <= 16
        assert {int(adapter[t]) for t in tokens} == {index}
        seen += tokens
    assert sorted(seen) == list(range(45))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rank", [16, 64])
@pytest.mark.parametrize(("T", "M", "N", "E"), [(1, 130, 63, 1), (40, 33, 300, 3)], ids=str)
def test_grouped_lora(interpreted, dtype: torch.dtype, rank: int, T: int, M: int, N: int, E: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return (torch.randn(size, generator=generator) * size[-1] ** -0.5).to(dtype)

    x, y, a, b = normal(T, N), normal(T, M), normal(E, rank, N), normal(E, M, rank)
    adapter = torch.arange(T) % E
    out = interpreted(grouped_lora, y.clone(), x, a, b, Groups.of(adapter))
    rounding = 8e-3 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out, grouped_lora_ref(y, x, a, b, adapter), rtol=rounding, atol=rounding)


def test_grouped_lora_refuses_what_it_cannot_do() -> None:
    x, y = torch.zeros(2, 8), torch.zeros(2, 8)
    with pytest.raises(ValueError, match="rank"):
        grouped_lora(y, x, torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), Groups.of(torch.zeros(2)))
    with pytest.raises(ValueError, match="contiguous"):
        grouped_lora(y, x.T, torch.zeros(1, 16, 2), torch.zeros(1, 8, 16), Groups.of(torch.zeros(8)))


CHECK_GPU_FORMS = """
import json, torch
from zweave.bench.kernels.gpu_forms import GPU_FORMS
from zweave.bench.kernels.linear_case import Operands
from zweave.bench.kernels.shapes import Shape

errors = {}
for name, form in GPU_FORMS.items():
    if name.startswith(("factored fp8", "factored int8", "Triton")):
        # The interpreter cuts float32 off to bfloat16 where a GPU rounds.
        operands = Operands(Shape("m", "q", 96, 128), tokens=5, experts=2, dtype=torch.float32)
        provider = form(operands)(5, 2)
        errors[name] = provider.error(), provider.limit
print(json.dumps(errors))
"""


@pytest.mark.slow
def test_ways_of_the_gpu_agree_with_float64() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", CHECK_GPU_FORMS],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert errors.keys() == {"factored fp8", "factored int8", "Triton LoRA rank 16", "Triton LoRA rank 64"}
    for name, (error, limit) in errors.items():
        assert error <= limit, name


def test_the_naive_formula_that_is_compiled() -> None:
    o = Operands(SHAPES[0], tokens=5, experts=2, dtype=torch.float32)
    args = (o.x, o.vt, o.u, o.scale, o.slot(5, 2))
    torch.testing.assert_close(svf_linear_naive(*args), svf_linear_ref(*args))
    provider = gpu_forms._factored(o, "naive", [(o.vt, o.u)], svf_linear_naive)(5, 2)
    assert provider.error() <= provider.limit
    assert dataclasses.asdict(provider)["labels"]["bound"] == pytest.approx(33 * (33 + 70) / (33 * 70))
