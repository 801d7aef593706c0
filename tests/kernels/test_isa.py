"""Every instruction set computes the same, and ZWEAVE_CPU_ISA chooses one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Writes the results of every op, on sizes with tails everywhere, to the file it is given.
PROGRAM = """
import sys, torch
from dataclasses import replace
from zweave.kernels import *
from zweave.kernels._C import cpu_isa
from zweave.kernels.layout.grid import grid_of, pack_grid

random = torch.Generator().manual_seed(0)
def normal(*shape):
    return torch.randn(*shape, generator=random)

def on_grid(format):
    weight = quantize(normal(101, 96) / 10, format, 32)
    return pack_grid(grid_of(replace(weight, scale=weight.scale.half().float())))

grids = on_grid("int4"), on_grid("int8")
results = {}
for dtype in (torch.float32, torch.bfloat16):
    x = normal(29, 77).to(dtype)
    weight, bias = (normal(101, 77) / 77**0.5).to(dtype), normal(101).to(dtype)
    packed = pack(weight)
    vt, u = (normal(53, 77) / 77**0.5).to(dtype), (normal(101, 53) / 53**0.5).to(dtype)
    slot = torch.arange(29, dtype=torch.int32) % 3
    long = (normal(29, 301) * 10 ** normal(29, 301)).to(dtype)
    residual, up = normal(29, 77), normal(29, 77).to(dtype)
    q, k, v = normal(29, 6, 22).to(dtype), normal(29, 2, 22).to(dtype), normal(29, 2, 22).to(dtype)
    position = torch.arange(29, dtype=torch.int32) + 100
    angle = normal(200, 11)
    rope(q, k, angle.cos(), angle.sin(), position)
    k_cache, v_cache = empty_kv(18, 2, 8, 22, dtype, torch.device("cpu"))
    for cache in (k_cache, v_cache):
        cache.copy_(normal(*cache.shape))
    write_kv(k, v, k_cache, v_cache, torch.arange(100, 129))
    table = torch.arange(18, dtype=torch.int32)[None]
    attention = [
        paged_attention(
            q, k_cache, v_cache, table, torch.zeros_like(position), position, 0.2, window
        )
        for window in (0, 50)
    ]
    results[dtype] = {
        "exact": [
            packed.data,
            unpack(packed),
            # Integer sums are exact, and what is rounded after them comes in one order.
            *(
                svf_delta_linear(
                    long[:tokens],
                    pack(torch.zeros(101, 301, dtype=dtype)),
                    pack(quantize(normal(153, 301), format, group)),
                    pack(quantize(normal(101, 153), format, group)),
                    normal(3, 153),
                    slot[:tokens],
                )
                for tokens in (29, 1)
                for format in ("int8", "int4")
                for group in (None, 64, 128)
            ),
        ],
        "close": [
            q,
            k,
            k_cache,
            v_cache,
            linear(x, packed, bias),
            linear(x[:2], packed),
            linear(x[:1], packed),
            *(linear(normal(29, 96).to(dtype)[:tokens], grid) for grid in grids for tokens in (29, 3)),
            svf_linear(x, pack(vt), pack(u), normal(3, 53), slot, bias),
            *(
                svf_delta_linear(x[:tokens], packed, *factors, normal(3, 53), slot[:tokens], bias)
                for tokens in (29, 1)
                for factors in (
                    (pack(vt), pack(u)),
                    (pack(quantize(vt, "int8")), pack(quantize(u, "int8"))),
                    (pack(quantize(vt, "int4")), pack(quantize(u, "int4"))),
                )
            ),
            rms_norm(x, normal(77), 1e-5),
            add_rms_norm(x, residual, normal(77), 1e-5),
            residual,
            silu_mul(x, up),
            *attention,
            mix(normal(7, 99), normal(4, 7)),
        ],
    }
torch.save((cpu_isa(), results), sys.argv[1])
"""


def run(isa: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ZWEAVE_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def results_of(isa: str, directory: Path) -> dict:
    file = directory / "results.pt"
    done = run(isa, PROGRAM, str(file))
    if "does not support" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    name, results = torch.load(file)
    assert name == isa
    return results


@pytest.fixture(scope="module")
def scalar_results(tmp_path_factory) -> dict:
    return results_of("scalar", tmp_path_factory.mktemp("scalar"))


@pytest.mark.parametrize("isa", ["avx2", "avx512_vnni", "avx512", "amx"])
def test_agrees_with_its_scalar_twin(isa, scalar_results, tmp_path, tolerance) -> None:
    found = results_of(isa, tmp_path)
    for dtype, kinds in scalar_results.items():
        for ours, twin in zip(found[dtype]["exact"], kinds["exact"], strict=True):
            assert torch.equal(ours, twin)
        for ours, twin in zip(found[dtype]["close"], kinds["close"], strict=True):
            assert twin.isfinite().all()
            torch.testing.assert_close(ours, twin, **tolerance(dtype))


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    done = run("sse9", "import torch; from zweave.kernels import silu_mul; silu_mul(*torch.ones(2, 1, 1))")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == "RuntimeError: ZWEAVE_CPU_ISA is 'sse9': use scalar, avx2, avx512_vnni, avx512 or amx"


def test_without_the_variable_a_set_is_chosen() -> None:
    done = run("", "from zweave.kernels._C import cpu_isa; print(cpu_isa())")
    assert done.stdout.strip() in ("scalar", "avx2", "avx512_vnni", "avx512", "amx")
