"""A server on a port of its own, over a tiny engine."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from zweave import Engine
from zweave.server.app import create_app
from zweave.server.settings import ServerSettings


@dataclass
class Running:
    """A server, its engine, and clients for it.

    steps: what an engine on hold waits for before each step.
    """

    engine: Engine
    url: str
    settings: ServerSettings
    uvicorn: uvicorn.Server
    steps: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def in_work(self) -> float:
        """Answers that are on their way."""
        text = self.http().get("/metrics").text
        return float(text.partition("\nzweave_requests_in_work ")[2].split("\n")[0])

    def openai(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def hold(self) -> threading.Semaphore:
        """The engine computes as many steps as the semaphore is released for from now on."""
        return self._before_each_step(self.steps.acquire)

    def slow_down(self) -> None:
        """A step takes 5 ms more: a request of 400 tokens is in work until a test has looked."""
        self._before_each_step(lambda: time.sleep(0.005))

    def _before_each_step(self, wait: Callable[[], object]) -> threading.Semaphore:
        step = self.engine.step

        def later_step() -> Any:
            wait()
            return step()

        self.engine.step = later_step
        return self.steps

    def stop(self) -> None:
        """Tells the server to stop without waiting for what runs."""
        self.uvicorn.should_exit = self.uvicorn.force_exit = True


class ServerProcess:
    """`zweave serve` in a process of its own.

    log: what it has written.
    """

    def __init__(
        self, model: Path, options: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        command = [sys.executable, "-m", "zweave.cli.main", "serve", str(model), "--port", str(self.port)]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=os.environ | environment,
            )

    def wait(self) -> "ServerProcess":
        """Returns when it answers."""
        end = time.monotonic() + 120
        while True:
            try:
                assert self.http().get("/health").status_code == 200
                return self
            except httpx.TransportError:
                assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
                time.sleep(0.1)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def gauges(self) -> dict[str, float]:
        """What /metrics tells, without labels."""
        families = text_string_to_metric_families(self.http().get("/metrics").text)
        return {sample.name: sample.value for family in families for sample in family.samples}

    def resources(self) -> dict[str, int]:
        """Resident bytes, threads and open files."""
        own = Path(f"/proc/{self.process.pid}")
        return {
            "bytes": int((own / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            "threads": len(list((own / "task").iterdir())),
            "files": len(list((own / "fd").iterdir())),
        }


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """`server_process(model, *options, **environment)`: one that starts, and is killed in the end."""
    started: list[ServerProcess] = []

    def start(model: Path, *options: str, **environment: str) -> ServerProcess:
        log = tmp_path / f"server{len(started)}.log"
        started.append(ServerProcess(model, options, log, environment))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def start_server(tiny_engine: Callable[..., Engine]) -> Iterator[Callable[..., Running]]:
    """`start_server(engine_options, **settings)`."""
    running: list[tuple[Running, threading.Thread]] = []

    def start(engine_options: dict[str, Any] | None = None, **settings: Any) -> Running:
        engine = tiny_engine(**(engine_options or {}))
        chosen = ServerSettings(**{"model_name": "tiny", **settings})
        config = uvicorn.Config(create_app(engine, chosen), port=0, log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        found = Running(engine, f"http://127.0.0.1:{port}", chosen, server)
        running.append((found, thread))
        return found

    yield start
    for found, _ in running:
        found.uvicorn.should_exit = True
        found.steps.release(10000)
    for _, thread in running:
        thread.join(10)


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Running]) -> Running:
    """One with the defaults, that tests share."""
    return start_server()
