"""A server that is killed amid its work, and started again over the same directory and caches."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from zweave import Engine, Expert, Request

ADMIN = {"Authorization": "Bearer admin"}
BODY = {"prompt": list(range(3, 40)), "max_tokens": 40, "temperature": 0, "ignore_eos": True}
EXPERTS = 12


@pytest.mark.slow
def test_a_killed_server_leaves_nothing_half_written(
    tiny_model: Callable[..., Path],
    random_expert: Callable[..., Expert],
    server_process: Callable[..., Any],
    tmp_path: Path,
) -> None:
    model = tiny_model("llama", vocab_size=96)
    directory, cache, temporary = (tmp_path / name for name in ("experts", "cache", "tmp"))
    for folder in (directory, cache, temporary):
        folder.mkdir()
    wanted = write_experts(model, directory, random_expert)
    files = {file.name: file.read_bytes() for file in directory.iterdir()}
    options = ["--experts", str(directory), "--admin-key", "admin", "--dtype", "float32"]
    environment = {"ZWEAVE_CACHE": str(cache), "TMPDIR": str(temporary)}

    def start() -> Any:
        return server_process(model, *options, **environment)

    # The first time while it decomposes the model, then at work.
    server = start()
    while not any(cache.rglob("*.safetensors*")):
        assert server.process.poll() is None
    kill(server)
    for rounds in (1, 5):
        server = start().wait()
        check(server, wanted)
        traffic = Traffic(server, (directory / "e0.safetensors").read_bytes())
        traffic.wait(rounds)
        kill(server)
        traffic.join()
        assert {file.name: file.read_bytes() for file in directory.iterdir()} == files
        assert list(temporary.iterdir()) == []
    server = start().wait()
    check(server, wanted)
    assert server.http().get("/v1/models/uploaded").status_code == 404, "uploads are kept in memory alone"
    assert [file for file in cache.rglob("*") if file.name.endswith(".tmp")] == []


def write_experts(model: Path, directory: Path, random_expert: Callable[..., Expert]) -> dict[str, str]:
    """Fills a server's directory; what the engine alone answers under each of its experts."""
    engine = Engine(model, dtype="float32", kv_tokens=1024)
    for index in range(EXPERTS):
        random_expert(engine.model.config.adapted_shapes(), seed=index).save(
            directory / f"e{index}.safetensors"
        )
        engine.load_expert(f"e{index}", directory / f"e{index}.safetensors")
    requests = [
        Request(BODY["prompt"], expert=name, max_tokens=40, ignore_eos=True) for name in engine.experts()
    ]
    texts = [result.text for result in engine.generate(requests)]
    assert len(set(texts)) == EXPERTS
    return dict(zip(engine.experts(), texts, strict=True))


def check(server: Any, wanted: dict[str, str]) -> None:
    for name, text in wanted.items():
        told = server.http().post("/v1/completions", json=BODY | {"model": name}).json()
        assert told["choices"][0]["text"] == text, name


def kill(server: Any) -> None:
    server.process.kill()
    server.process.wait()


class Traffic:
    """Clients that ask, upload, load and unload until the server is gone."""

    def __init__(self, server: Any, content: bytes) -> None:
        self._content, self._server = content, server
        kinds = (self._ask, self._ask, self._ask, self._upload, self._upload, self._load)
        self._rounds = dict.fromkeys(kinds, 0)
        self._threads = [threading.Thread(target=self._go_on, args=(kind,)) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def wait(self, rounds: int) -> None:
        """Returns when each kind of client had so many answers."""
        while min(self._rounds.values()) < rounds:
            assert all(thread.is_alive() for thread in self._threads)
            time.sleep(0.001)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _go_on(self, kind: Callable[[httpx.Client], httpx.Response]) -> None:
        with suppress(httpx.TransportError), self._server.http(headers=ADMIN) as http:
            while True:
                assert kind(http).status_code in (200, 201, 404)
                self._rounds[kind] += 1

    def _ask(self, http: httpx.Client) -> httpx.Response:
        body = BODY | {"model": f"e{self._rounds[self._ask] % EXPERTS}", "stream": True}
        return http.post("/v1/completions", json=body)

    def _upload(self, http: httpx.Client) -> httpx.Response:
        return http.post("/v1/experts?name=uploaded", content=self._content)

    def _load(self, http: httpx.Client) -> httpx.Response:
        http.post("/v1/unload_lora_adapter", json={"lora_name": "mine"})
        return http.post("/v1/load_lora_adapter", json={"lora_name": "mine", "lora_path": "e1.safetensors"})
