"""What is made of the rows that `bench gpu` leaves: predictions beside measurements, and which kernels are profiled."""

import json
import sys
from pathlib import Path

import pytest

from zweave.bench.harness.results import read_results
from zweave.bench.kernels import gpu_profile, ncu
from zweave.bench.kernels.gpu_profile import slowest
from zweave.cli.main import main

HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device",'
    '"CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)
ROOFLINE = {"roof_pct": 80.0, "gb_s": 3600.0, "gflop_s": 3500.0, "read_gb_s": 4300.0}


def product(provider: str, stage: str, roof_pct: float, T: int = 64, **others: object) -> dict:
    row = {"provider": provider, "status": "ok", "stage": stage, "T": T, "E": None, "seconds": 1e-5}
    return row | ROOFLINE | {"roof_pct": roof_pct} | others


PREDICTED = {"predicted_seconds": 8e-6, "predicted_for": "H200", "vs_predicted": 1.25}
PRODUCTS = [
    product("cuBLAS dense", "o", 5.0),
    product("Triton dense", "o", 60.0, **PREDICTED),
    product("Triton PDL dense", "o", 50.0),
    product("Triton dense", "qkv", 40.0),
    product("Triton factored", "qkv", 70.0),
    product("Triton dense", "down", 1.0, T=2048),
    product("Triton delta", "o", 0.0, status="wrong", seconds=None),
    {"provider": "Triton dense", "status": "ok", "stage": "layer", "T": 64, "E": None, "seconds": 9e-5,
     "fixed_seconds": 5.7e-6, "asymptote_gb_s": 4350.0, **PREDICTED},
]  # fmt: skip
ATTENTION = [
    {"provider": "zweave", "status": "ok", "kind": "decode", "batch": 16, "context": 256, "seconds": 2e-5}
    | ROOFLINE
    | {"roof_pct": 45.0},
    {"provider": "torch SDPA", "status": "ok", "kind": "decode", "batch": 16, "context": 256, "seconds": 2e-5}
    | ROOFLINE
    | {"roof_pct": 3.0},
]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    for part, bench, rows in (
        ("products", "gpu-products", PRODUCTS),
        ("attention", "gpu-attention", ATTENTION),
        (
            "roofs",
            "gpu-roofs",
            [{"provider": "read, Triton sum", "status": "ok", "seconds": 1.0, "gb_s": 4400.0}],
        ),
    ):
        (folder / f"{part}.json").write_text(json.dumps({"bench": bench, "rows": rows}))
    (folder / "summary.json").write_text('[{"name": "tests", "status": 0, "seconds": 3.0}]')
    (folder / "cut.json").write_text('{"bench": "b", "ro')
    return folder


def test_what_was_predicted_stands_beside_what_was_measured(
    results: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    plot = tmp_path / "roofline.png"
    assert main(["bench", "gpu-summary", "--results", str(results), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    rows = json.loads(out.splitlines()[-1])["rows"]
    predicted = [(row["part"], row["provider"], row["of"]) for row in rows if row["predicted_seconds"]]
    assert predicted == [
        ("products", "Triton dense", "stage o, T 64"), ("products", "Triton dense", "stage layer, T 64"),
    ]  # fmt: skip
    assert "1.25" in out and "H200" in out
    assert "products: 7 ok, 1 wrong" in out
    assert "Triton dense at T = 64: 5.7 us a stage and 4.35 TB/s" in out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_kernels_furthest_from_their_roof(results: Path) -> None:
    targets = slowest(read_results(results), 3)
    assert [(target.name, target.roof_pct) for target in targets] == [
        ("qkv dense, 64 tokens", 40.0), ("decode, 16 x 256", 45.0), ("o dense, 64 tokens", 50.0),
    ]  # fmt: skip
    for target in targets:
        from zweave.cli.parser import make_parser

        arguments = ["bench", *target.bench]
        assert make_parser(arguments).parse_args(arguments).check


def test_a_profile(
    results: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a stand-in for ncu that tells of one launch, and fails for attention."""
    metrics = ("71.5", "12.0", "8.0", "20.0", "5.5", "0.1", "1,234.5", "0.2", "0.3", "0.4")
    launch = '"0","1","python","h","_gemm_kernel","1","7","(128, 1, 1)","(1, 96, 1)","0","9.0","s",'
    lines = ["==PROF== Connected", HEADER]
    lines += [
        f'{launch}"{name}","%","{value}"'
        for name, value in zip([*ncu.SHARES.values(), *ncu.STALLS.values()], metrics, strict=True)
    ]
    fake = tmp_path / "ncu"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "command = ' '.join(sys.argv[1:])\n"
        "assert '--clock-control none' in command and 'zweave.cli.main bench gpu-' in command\n"
        "if 'attention' in command: sys.exit('==ERROR== ERR_NVGPUCTRPERM: no permission')\n"
        f"print({chr(10).join(lines)!r})\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(gpu_profile, "ncu_path", lambda: str(fake))
    assert main(["bench", "gpu-profile", "--results", str(results), "--kernels", "2", "--json"]) == 1
    product, attention = json.loads(capsys.readouterr().out)["rows"]
    assert (product["kernel"], product["dram_pct"], product["l2_pct"]) == ("_gemm_kernel", 71.5, 12.0)
    assert product["stall"] == "barrier 1234.5, long_scoreboard 5.5"
    assert attention["status"] == "failed" and "ERR_NVGPUCTRPERM" in attention["note"]


def test_what_is_not_there_is_said(
    results: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    for arguments, what in (
        (("gpu-profile", results), "ncu is not installed"),
        (("gpu-profile", tmp_path), "no rows of gpu-products"),
        (("gpu-summary", tmp_path / "none"), "there is no folder"),
    ):
        assert main(["bench", arguments[0], "--results", str(arguments[1])]) == 1
        error = capsys.readouterr().err
        assert what in error and error.count("\n") == 1
