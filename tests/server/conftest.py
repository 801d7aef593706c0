"""A server on a port of its own, over a tiny engine."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from zweave import Engine
from zweave.server.app import create_app
from zweave.server.settings import ServerSettings


@dataclass
class Running:
    """A server, its engine, and clients for it."""

    engine: Engine
    url: str
    settings: ServerSettings

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def in_work(self) -> float:
        """Answers that are on their way."""
        text = self.http().get("/metrics").text
        return float(text.partition("\nzweave_requests_in_work ")[2].split("\n")[0])

    def slow_down(self) -> None:
        """A step takes 5 ms more: a request of 400 tokens is in work until a test has looked."""
        step = self.engine.step

        def slow_step() -> Any:
            time.sleep(0.005)
            return step()

        self.engine.step = slow_step

    def openai(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="session")
def start_server(tiny_engine: Callable[..., Engine]) -> Iterator[Callable[..., Running]]:
    """`start_server(engine_options, **settings)`."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(engine_options: dict[str, Any] | None = None, **settings: Any) -> Running:
        engine = tiny_engine(**(engine_options or {}))
        chosen = ServerSettings(**{"model_name": "tiny", **settings})
        config = uvicorn.Config(create_app(engine, chosen), port=0, log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        return Running(engine, f"http://127.0.0.1:{port}", chosen)

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(10)


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Running]) -> Running:
    """One with the defaults, that tests share."""
    return start_server()
