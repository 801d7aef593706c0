"""Runs a Python program that nobody has read: in a process of its own, under limits, and says whether it ended well.

Where the system lets us (Linux namespaces through `unshare`) the program has no network, sees no process but its
own, and may write to its temporary directory alone. Elsewhere the limits and the temporary directory remain: it
could then read and write what the user can, and `isolated` is False.

The program ends well only if its last line was reached: `sys.exit(0)` before the tests is no success. The runner
learns of it by a word that the program never sees in its file or its arguments.
"""

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import ZweaveError

# Sets the limits, hides the word's way out, runs the program and only then says the word.
_RUNNER = """
import os, resource, sys
cpu, memory, processes, file_size = map(int, sys.argv[1:5])
word, _, program = sys.stdin.buffer.read().partition(b"\\n")
for name, value in (("CPU", cpu), ("AS", memory), ("NPROC", processes), ("FSIZE", file_size), ("CORE", 0)):
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
out = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0), os.dup2(null, 1)
sys.argv = ["program.py"]
exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
os.write(out, word)
"""
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


def run_program(program: str, limits: Limits = Limits()) -> Outcome:
    """Runs a program's text with `python -I` in an empty directory; nothing of it outlives the call."""
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="zweave-", ignore_cleanup_errors=True) as directory:
        numbers = (limits.cpu_seconds, limits.memory, limits.processes, limits.file_size)
        command = [sys.executable, "-I", "-S", "-c", _RUNNER, *map(str, numbers)]
        if isolated():
            command = [*_ISOLATE, directory, *command]
        # Output goes to files: a pipe that a program fills would have to be read without end.
        with (Path(directory) / ".out").open("w+b") as out, (Path(directory) / ".err").open("w+b") as err:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                cwd=directory,
                env={"PATH": os.defpath, "HOME": directory, "TMPDIR": directory, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            try:
                process.communicate(f"{word}\n{program}".encode(errors="replace"), timeout=limits.seconds)
            except subprocess.TimeoutExpired:
                return Outcome(False, f"it ran longer than {limits.seconds:g} s")
            finally:
                _end(process)
            out.seek(0)
            err.seek(0)
            if process.returncode == 0 and out.read(len(word) + 1).decode("latin-1") == word:
                return Outcome(True, "")
            return Outcome(
                False, _last_line(err.read(1 << 20)) or f"it ended early, with status {process.returncode}"
            )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills what is left of the program's group; its leader may have gone before the others."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(error: bytes) -> str:
    lines = [line for line in error.decode("utf-8", "replace").splitlines() if line.strip()]
    # What `unshare` says of a program that was killed is no word of the program.
    return lines[-1][:200] if lines and not lines[-1].startswith("unshare: ") else ""
