"""Runs a Python program that nobody has read: in a process of its own, under limits, and says whether it ended well.

Where the system lets us (Linux namespaces through `unshare`) the program has no network, sees no process but its
own, and may write to its temporary directory alone. Elsewhere the limits and the temporary directory remain: it
could then read and write what the user can, and `isolated` is False.

Its tests run in a second process (`sandbox_runner.py`), which finds the program's names and gets plain data from them.
So a program that leaves, or returns an object that is equal to everything, passes no test.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from ..errors import ZweaveError

_RUNNER = Path(__file__).with_name("sandbox_runner.py")
_ISOLATE = (
    "unshare", "--user", "--map-root-user", "--net", "--pid", "--ipc", "--mount", "--fork", "--kill-child", "sh", "-c",
    'mount --bind "$0" "$0" && mount -o remount,bind,ro / && mount -t proc proc /proc && cd "$0" && exec "$@"',
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    cpu_seconds: processor time.
    memory: bytes of address space.
    processes: at once, threads included.
    file_size: bytes of the largest file.
    seconds: by the clock.
    """

    cpu_seconds: int = 5
    memory: int = 1 << 30
    processes: int = 16
    file_size: int = 1 << 20
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if min(self.cpu_seconds, self.memory, self.processes, self.file_size) < 1 or self.seconds <= 0:
            raise ZweaveError("the limits of a sandbox must be positive")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    passed: whether it ran to its end.
    reason: empty if it passed, else its last line of error or what stopped it.
    """

    passed: bool
    reason: str


@cache
def isolated() -> bool:
    """Whether programs run without network, apart from other processes and from the user's files."""
    with tempfile.TemporaryDirectory(prefix="zweave-") as directory:
        try:
            done = subprocess.run(
                [*_ISOLATE, directory, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20
            )
            works = done.returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            works = False
    if not works:
        logging.getLogger("zweave").warning(
            "unshare does not work here: programs under test run under limits, but with the network and your files"
        )
    return works


def run_program(program: str, limits: Limits = Limits(), tests: str = "") -> Outcome:
    """Runs a program's text with `python -I` in an empty directory; nothing of it outlives the call.

    tests: run in another process, in which the program's names are found and called; it passes if they end well.
    """
    with ExitStack() as stack:
        here, there = os.pipe(), os.pipe()
        made = [
            _start(stack, "program", program, limits, here[0], there[1]),
            _start(stack, "tests", tests, limits, there[0], here[1]),
        ]
        for end in (*here, *there):
            os.close(end)
        deadline = time.monotonic() + limits.seconds
        try:
            # The tests end last: with the program they lose whom they ask.
            made[1].process.wait(max(0.0, deadline - time.monotonic()))
            made[0].process.wait(max(0.0, min(1.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            return Outcome(False, f"it ran longer than {limits.seconds:g} s")
        finally:
            for part in made:
                _end(part.process)
        ran, checked = made
        if checked.process.returncode == 0 and ran.process.returncode == 0:
            return Outcome(True, "")
        # Where the program failed, the tests know no more than that it ended.
        reason = ran.last_line() or checked.last_line()
        return Outcome(False, reason or f"it ended early, with status {ran.process.returncode}")


@dataclass(frozen=True, slots=True)
class _Part:
    """A running process and the file of its standard error."""

    process: "subprocess.Popen[bytes]"
    errors: IO[bytes]

    def last_line(self) -> str:
        self.errors.seek(0)
        text = self.errors.read(1 << 20).decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if line.strip()]
        # What `unshare` says of a program that was killed is no word of the program.
        return lines[-1][:200] if lines and not lines[-1].startswith("unshare: ") else ""


def _start(stack: ExitStack, role: str, text: str, limits: Limits, reads: int, writes: int) -> _Part:
    """Starts one of the two in a directory of its own.

    reads, writes: ends of pipes.
    """
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="zweave-", ignore_cleanup_errors=True))
    path = Path(directory) / f"{role}.py"
    path.write_text(text, encoding="utf-8", errors="replace")
    numbers = (limits.cpu_seconds, limits.memory, limits.processes, limits.file_size)
    command = [sys.executable, "-I", "-S", str(_RUNNER), role, str(path), *map(str, numbers)]
    if isolated():
        command = [*_ISOLATE, directory, *command]
    # A file: a pipe that a program fills would have to be read without end.
    errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    process = subprocess.Popen(
        command,
        stdin=reads,
        stdout=writes,
        stderr=errors,
        cwd=directory,
        env={"PATH": os.defpath, "HOME": directory, "TMPDIR": directory, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    return _Part(process, errors)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills what is left of the program's group; its leader may have gone before the others."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
