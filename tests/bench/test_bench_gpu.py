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


def listed(out: Path, rebuild: bool = False) -> list[Part]:
    return [part for group in parts(out, rebuild) for part in group]


def test_parts_fit_into_nine_minutes(tmp_path: Path) -> None:
    assert gpu.DEADLINE < 9 * 60
    assert [part.name for part in listed(tmp_path, rebuild=True)][:3] == ["build", "roofs", "tests"]
    assert "build" not in [part.name for part in listed(tmp_path)]
    tests = next(part for part in listed(tmp_path) if part.name == "tests").command
    assert any(argument.endswith("test_triton.py") for argument in tests)
    longest = sum(max(part.seconds for part in group) for group in parts(tmp_path, rebuild=False))
    assert longest <= gpu.DEADLINE - gpu.SUMMARY_SECONDS
    # What is timed runs alone, but for the roofs beside the build.
    alone = [group for group in parts(tmp_path, rebuild=False) if len(group) == 1]
    assert {part.name for (part,) in alone} >= {name for name, *_ in (*gpu.BENCHES, *gpu.LATE_BENCHES)}


def test_parts_are_commands_that_exist(tmp_path: Path) -> None:
    seen = []
    for part in [*listed(tmp_path), gpu.summary_part(tmp_path)]:
        if gpu.ZWEAVE[-1] in part.command:
            arguments = part.command[part.command.index(gpu.ZWEAVE[-1]) + 1 :]
            asked = make_parser(arguments).parse_args(arguments)
            seen.append(asked.bench)
            assert asked.plot in (None, tmp_path / f"{part.name}.png", tmp_path / "roofline.png")
    assert set(seen) == {
        "gpu-check", "gpu-products", "gpu-attention", "gpu-step", "gpu-engine", "gpu-profile", "gpu-summary",
    }  # fmt: skip


def test_a_tool_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_tool", lambda name: PYTHON if name == "a tool" else None)
    run = [
        (
            Part("without", ("magic", "-x"), 60, tool="magic"),
            Part(
                "with",
                ("a tool", "-c", "import os; print(os.environ['N'])"),
                60,
                tool="a tool",
                environment=(("N", "3"),),
            ),
            Part("gone", (str(tmp_path / "none"),), 60),
        )
    ]
    done = {part.name: part.status for part in run_parts(run, tmp_path)}
    assert done == {"without": "not installed", "with": 0, "gone": "cannot start: No such file or directory"}
    assert (tmp_path / "with.txt").read_text() == "3\n"


def test_parts_of_a_group_run_at_once(tmp_path: Path) -> None:
    meet = "import pathlib, sys, time\n"
    meet += "mine, other = map(pathlib.Path, sys.argv[1:])\n"
    meet += "mine.touch()\n"
    meet += "while not other.exists(): time.sleep(0.01)\n"
    one, two = str(tmp_path / "1"), str(tmp_path / "2")
    group = (Part("a", (*python(meet), one, two), 20), Part("b", (*python(meet), two, one), 20))
    assert [part.status for part in run_parts([group], tmp_path)] == [0, 0]


def test_a_part_that_fails_or_hangs_does_not_stop_the_next(tmp_path: Path) -> None:
    line = '{"bench": "b", "rows": []}'
    done = run_parts(
        [
            (Part("fails", python("print('hello'); raise SystemExit(3)"), 60),),
            (Part("hangs", python("import time; print('begun', flush=True); time.sleep(60)"), 1.5),),
            (Part("bench", python(f"print('table'); print('{line}')"), 60, figures=True),),
        ],
        tmp_path,
    )
    assert [part.status for part in done] == [3, "too long", 0]
    assert (tmp_path / "fails.txt").read_text() == "hello\n"
    assert "begun" in (tmp_path / "hangs.txt").read_text()
    assert (tmp_path / "bench.json").read_text() == line + "\n"
    assert (tmp_path / "bench.txt").read_text() == "table\n"


def test_no_part_begins_after_the_deadline(tmp_path: Path) -> None:
    done = run_parts([(Part("late", python("raise SystemExit(1)"), 60),)], tmp_path, deadline=0.5)
    assert done[0].status == "no time left"
    assert not (tmp_path / "late.txt").exists()


def test_children_end_with_their_part(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    run_parts([(Part("family", python(code), 5),)], tmp_path)
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
    good, bad = Part("good", python("pass"), 60), Part("bad", python("raise SystemExit(2)"), 60)
    missing = Part("missing", ("no such tool",), 60, tool="no such tool")
    told = Part("predictions", python("print('as predicted')"), 60, figures=True)
    monkeypatch.setattr(gpu, "needs_build", lambda: False)
    monkeypatch.setattr(gpu, "_has_gpu", lambda: True)
    monkeypatch.setattr(gpu, "summary_part", lambda out: told)
    monkeypatch.setattr(gpu, "parts", lambda out, rebuild: [(good, bad), (missing,)])
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "a" / "b")])
    assert gpu.main() == 1
    summary = json.loads((tmp_path / "a" / "b" / "summary.json").read_text())
    assert {part["name"]: part["status"] for part in summary} == {
        "good": 0, "bad": 2, "missing": "not installed", "predictions": 0,
    }  # fmt: skip
    monkeypatch.setattr(gpu, "parts", lambda out, rebuild: [(good,), (missing,)])
    assert gpu.main() == 1, "what is there is not written over"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "c")])
    assert gpu.main() == 0


def test_without_a_gpu_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(gpu, "_has_gpu", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    assert gpu.main() == 1 and not (tmp_path / "out").exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(gpu, "_has_gpu", lambda: True)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "file" / "out")])
    assert gpu.main() == 1
