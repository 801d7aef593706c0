"""A peer in a process and environment of its own, which answers the workload whenever it is asked."""

import json
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

Answers = list[list[int]]
WORKER = ("-m", "zweave.bench.serving.peers.peer_worker")


class PeerProcess:
    """Runs a worker under an interpreter, from the first call on.

    job: what the worker loads and answers, its last argument.
    worker: its other arguments.
    Calls raise RuntimeError with the last line that the process wrote, if it has ended.
    """

    def __init__(
        self, python: Path, job: str, environment: Mapping[str, str], worker: Sequence[str] = WORKER
    ) -> None:
        self._command = [str(python), *worker, job]
        # Without the working directory on the path: in a checkout transformers would take our folder `kernels` for
        # the package of that name.
        self._environment = {**environment, "PYTHONSAFEPATH": "1"}
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process)
        self._process: subprocess.Popen[str] | None = None

    def __call__(self) -> Answers:
        """The answers' token ids, computed anew."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=self._environment,
                text=True,
            )
            self._read(self._process)
        assert self._process.stdin is not None
        # `_read` finds out that the process has ended.
        with suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self._read(self._process)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _read(self, process: "subprocess.Popen[str]") -> Any:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line:
            return json.loads(line)
        process.wait()
        if process.returncode == -signal.SIGKILL:
            raise RuntimeError("killed, as by a system out of memory: measure fewer --providers at once")
        self._log.seek(0)
        written = [text.strip() for text in self._log if text.strip()]
        if process.returncode < 0:
            raise RuntimeError(f"ended by {signal.Signals(-process.returncode).name}")
        raise RuntimeError(written[-1] if written else f"ended with {process.returncode}")
