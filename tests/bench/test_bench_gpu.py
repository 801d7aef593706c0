"""The one command for a GPU machine: parts, limits of time and what is written."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zweave.bench import gpu
from zweave.bench.gpu import Part, parts, run_parts
from zweave.cli.parser import make_parser

PYTHON = sys.executable


def python(code: str) -> tuple[str, ...]:
    return (PYTHON, "-c", code)


def test_parts_fit_into_nine_minutes(tmp_path: Path) -> None:
    assert gpu.DEADLINE < 9 * 60
    listed = parts(tmp_path, rebuild=True)
    assert [part.name for part in listed][:2] == ["build", "tests"]
    assert sum(part.figures for part in listed) == len(listed) - 2
    assert "build" not in [part.name for part in parts(tmp_path, rebuild=False)]
    tests = next(part for part in listed if part.name == "tests").command
    assert any(argument.endswith("test_triton.py") for argument in tests)
    assert sum(part.seconds for part in parts(tmp_path, rebuild=False)) <= gpu.DEADLINE


def test_parts_are_commands_that_exist(tmp_path: Path) -> None:
    for part in parts(tmp_path, rebuild=False):
        if part.figures:
            arguments = part.command[len(gpu.ZWEAVE) :]
            asked = make_parser(arguments).parse_args(arguments)
            assert asked.plot == tmp_path / f"{part.name}.png"


def test_what_was_predicted_is_told_beside_what_was_measured(tmp_path: Path) -> None:
    row = {"provider": "delta", "status": "ok", "batch": 64, "context": 512, "experts": 64, "seconds": 0.006,
           "predicted_seconds": 0.005, "predicted_for": "H200", "vs_predicted": 1.2}  # fmt: skip
    failed = row | {"provider": "dense", "status": "failed", "seconds": None, "vs_predicted": None}
    without = {"provider": "F.linear", "status": "ok", "seconds": 1.0}
    (tmp_path / "step.json").write_text(json.dumps({"bench": "gpu-step", "rows": [row, failed, without]}))
    (tmp_path / "summary.json").write_text("[]")
    assert gpu.predictions(tmp_path) == [
        "step: delta, batch 64, context 512, experts 64: measured 6.000 ms, predicted 5.000 ms for H200, "
        "1.20 times as long",
        "step: dense, batch 64, context 512, experts 64: failed, predicted 5.000 ms for H200",
    ]


def test_a_part_that_fails_or_hangs_does_not_stop_the_next(tmp_path: Path) -> None:
    line = '{"bench": "b", "rows": []}'
    done = run_parts(
        [
            Part("fails", python("print('hello'); raise SystemExit(3)"), 60),
            Part("hangs", python("import time; print('begun', flush=True); time.sleep(60)"), 1.5),
            Part("bench", python(f"print('table'); print('{line}')"), 60, figures=True),
        ],
        tmp_path,
    )
    assert [part.status for part in done] == [3, "too long", 0]
    assert (tmp_path / "fails.txt").read_text() == "hello\n"
    assert "begun" in (tmp_path / "hangs.txt").read_text()
    assert (tmp_path / "bench.json").read_text() == line + "\n"
    assert (tmp_path / "bench.txt").read_text() == "table\n"


def test_no_part_begins_after_the_deadline(tmp_path: Path) -> None:
    done = run_parts([Part("late", python("raise SystemExit(1)"), 60)], tmp_path, deadline=0.5)
    assert done[0].status == "no time left"
    assert not (tmp_path / "late.txt").exists()


def test_children_end_with_their_part(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    run_parts([Part("family", python(code), 5)], tmp_path)
    child = Path("/proc") / str(int((tmp_path / "family.txt").read_text()))
    deadline = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(process: Path) -> bool:
    """Whether it does: a killed child may stay as a zombie until its new parent takes note."""
    try:
        return "Z" not in (process / "stat").read_text().rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_it_runs_before_anything_is_built(tmp_path: Path) -> None:
    script = Path(gpu.__file__)
    assert "zweave" not in [line.split()[1].partition(".")[0] for line in script.read_text().splitlines()
                            if line.startswith(("import ", "from "))]  # fmt: skip
    shown = subprocess.run(
        [PYTHON, "-S", str(script), "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert shown.returncode == 0 and "--out" in shown.stdout


def test_summary_and_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [Part("good", python("pass"), 60), Part("bad", python("raise SystemExit(2)"), 60)]
    monkeypatch.setattr(gpu, "needs_build", lambda: False)
    monkeypatch.setattr(gpu, "parts", lambda out, rebuild: listed)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "a" / "b")])
    assert gpu.main() == 1
    summary = json.loads((tmp_path / "a" / "b" / "summary.json").read_text())
    assert [(part["name"], part["status"]) for part in summary] == [("good", 0), ("bad", 2)]
    monkeypatch.setattr(gpu, "parts", lambda out, rebuild: listed[:1])
    assert gpu.main() == 1, "what is there is not written over"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "c")])
    assert gpu.main() == 0


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "file" / "out")])
    assert gpu.main() == 1
