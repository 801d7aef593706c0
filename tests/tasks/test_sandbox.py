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


TESTS = "assert double(3) == 6 and double('ab') == 'abab'\nassert double([1]) == [1, 1]\n"
EQUAL = "class Equal(int):\n    def __eq__(self, other):\n        return True\n"


@pytest.mark.parametrize(
    ("program", "passes"),
    [
        ("def double(x):\n    return 2 * x", True),
        ("def double(x):\n    return 3 * x", False),
        (EQUAL + "def double(x):\n    return Equal()", False),
        (
            "class Equal:\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return Equal()",
            False,
        ),
        ("import os\ndef double(x):\n    os._exit(0)", False),
        ("import sys\ndef double(x):\n    sys.exit(0)", False),
        ("import sys\nsys.exit(0)", False),
        (
            "import os, __main__\nfor word in vars(__main__).values():\n    os.write(1, str(word).encode())\n"
            "os._exit(0)",
            False,
        ),
        (
            "import os\nfor end in range(3, 10):\n    try:\n"
            '        os.write(end, b\'{"names": {}, "modules": []}\\n\')\n'
            "    except OSError:\n        pass\nos._exit(0)",
            False,
        ),
        (
            "import builtins\nbuiltins.AssertionError = ValueError\ndef double(x):\n    raise StopIteration",
            False,
        ),
    ],
    ids=[
        "right",
        "wrong",
        "equal number",
        "equal",
        "_exit",
        "exit",
        "exit first",
        "word",
        "forged names",
        "builtins",
    ],
)
def test_only_what_answers_the_tests_passes_them(program: str, passes: bool) -> None:
    assert run_program(program, QUICK, TESTS).passed is passes


def test_tests_use_a_program_as_if_it_were_their_own() -> None:
    """Its classes, iterators, exceptions and modules, and what a call does to a list that it is given."""
    program = (
        "import math, pickle\n"
        "from collections import Counter\n"
        "class Pair:\n"
        "    def __init__(self, a, b):\n"
        "        self.a, self.b = a, b\n"
        "    def sum(self, *, scale=1):\n"
        "        return scale * (self.a + self.b)\n"
        "assert pickle.loads(pickle.dumps(Pair(1, 2))).a == 1\n"
        "def total(pairs):\n    return sum(pair.sum() for pair in pairs)\n"
        "def count(words):\n    return Counter(words)\n"
        "def squares(n):\n    return (i * i for i in range(n))\n"
        "def fails(x):\n    raise KeyError(x)\n"
        "def reverse(items):\n    items.reverse()\n"
        "LIMIT = (1, 2.5, {'a': {3}}, b'x', 2j, None, float('inf'))\n"
    )
    tests = (
        "assert total([Pair(1, 2), Pair(3, 4)]) == 10\n"
        "assert Pair(1, b=2).sum(scale=2) == 6 and Pair(5, 6).a == 5\n"
        "assert count('aab') == {'a': 2, 'b': 1}\n"
        "assert list(squares(4)) == [0, 1, 4, 9] and next(squares(2)) == 0\n"
        "try:\n    fails('x')\nexcept KeyError:\n    pass\nelse:\n    raise SystemExit(1)\n"
        "items = [1, 2, 3]\nreverse(items)\nassert items == [3, 2, 1]\n"
        "assert LIMIT == (1, 2.5, {'a': {3}}, b'x', 2j, None, float('inf'))\n"
        "def check(candidate):\n    assert math.isclose(candidate([Pair(0.1, 0.2)]), 0.3)\ncheck(total)\n"
    )
    outcome = run_program(program, Limits(), tests)
    assert outcome.passed, outcome.reason


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
