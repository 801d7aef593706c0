"""A server in a process of its own."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import httpx

from zweave.errors import ZweaveError

_START_SECONDS = 300


@contextmanager
def server_process(model: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """Yields the address of a server that takes requests, and stops it in the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "zweave.cli.main", "serve", str(model), "--port", str(port), *options]
    with TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd="/", stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(process, address, output)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen, address: str, output: object) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            output.seek(0)  # type: ignore[attr-defined]
            raise ZweaveError(f"the server did not start: {output.read().strip()[-300:]}")  # type: ignore[attr-defined]
        try:
            if httpx.get(f"{address}/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise ZweaveError(f"the server did not answer within {_START_SECONDS} s")
