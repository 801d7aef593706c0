"""A peer in a process and environment of its own, which answers the workload whenever it is asked."""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

Answers = list[list[int]]


class PeerProcess:
    """Starts `zweave.bench.peer_worker` under an interpreter.

    job: what the worker is to load and answer. Raises RuntimeError, with the last line that it wrote, if it ends.
    """

    def __init__(self, python: Path, job: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(
            [python, "-m", "zweave.bench.peer_worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=dict(environment),
            text=True,
        )
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __call__(self) -> Answers:
        """The answers' token ids, computed anew."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._read()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        written = [text.strip() for text in self._log if text.strip()]
        raise RuntimeError(written[-1] if written else f"ended with {self._process.returncode}")
