"""Programs that nobody has read: what they may not do, and that they cannot say that they passed."""

import os
import time
from pathlib import Path

import pytest

from zweave.errors import ZweaveError
from zweave.tasks import sandbox
from zweave.tasks.sandbox import Limits, run_program

QUICK = Limits(cpu_seconds=1, memory=1 << 29, processes=8, file_size=1 << 16, seconds=3)


@pytest.fixture(params=[True, False], ids=["isolated", "limits alone"], autouse=True)
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not sandbox.isolated():
        pytest.skip("unshare does not work here")
    monkeypatch.setattr(sandbox, "isolated", lambda: request.param)
    return request.param


def test_a_program_that_ends_passes() -> None:
    assert run_program("import math, re\nassert math.pi > 3\nopen('x', 'w').write('y')\nprint('é')").passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("import sys\nsys.exit(0)", "ended early"),
        ("import os\nos._exit(0)", "ended early"),
        ("import os\nos.write(1, b'0' * 32)\nos._exit(0)", "ended early"),
        ("def", "SyntaxError"),
        ("x = 'a' * (1 << 30)", "MemoryError"),
        ("open('x', 'wb').write(b'x' * (1 << 20))", "File too large"),
        ("while True:\n    pass", ""),
        ("import time\ntime.sleep(60)", "longer than 3 s"),
        ("import sys\nassert not sys.stdin.read(), sys.argv\nassert len(sys.argv) > 1", "AssertionError"),
    ],
    ids=["assert", "exit", "_exit", "forged word", "syntax", "memory", "file", "cpu", "clock", "no stdin"],
)
def test_a_program_that_fails_does_not_pass(program: str, reason: str) -> None:
    start = time.monotonic()
    outcome = run_program(program, QUICK)
    assert not outcome.passed and reason in outcome.reason
    assert time.monotonic() - start < 20


def test_children_die_with_the_program(tmp_path: Path, isolation: bool) -> None:
    program = (
        f"import os, time\nif os.fork() == 0:\n    time.sleep(2)\n    open({str(tmp_path / 'late')!r}, 'w')\n"
    )
    assert run_program(program, Limits(seconds=5)).passed
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_the_environment_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    assert run_program(
        "import os\nassert 'SECRET' not in os.environ\nassert os.listdir('.') != ['..']"
    ).passed


def test_isolated_programs_have_no_network_and_write_nowhere_else(tmp_path: Path, isolation: bool) -> None:
    if not isolation:
        pytest.skip("without unshare both are possible, and the log says so")
    outside = tmp_path / "outside"
    outcome = run_program(f"open({str(outside)!r}, 'w')")
    assert "Read-only" in outcome.reason and not outside.exists()
    connect = "import socket\nsocket.create_connection(('127.0.0.1', {}), 2)"
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not run_program(connect.format(server.getsockname()[1])).passed
    assert (
        run_program(f"import os\nassert not os.path.exists('/proc/{os.getpid()}/mem')").passed
        or os.getpid() < 9
    )


def test_limits_must_be_positive() -> None:
    with pytest.raises(ZweaveError, match="positive"):
        Limits(seconds=0)
