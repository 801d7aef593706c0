"""A server to be attacked, and what its answers must be."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

GOOD = {"model": "tiny", "prompt": "x", "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def attacked(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with everything on; at the end it must work as before."""
    folder = tmp_path_factory.mktemp("experts")
    (folder / "broken.safetensors").write_bytes(b"no tensors")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    server = start_server(
        experts=folder, admin_key="admin", max_waiting=16, request_timeout=5.0, max_body=100_000
    )
    with server.http() as http:
        before = http.post("/v1/completions", json=GOOD).json()["choices"][0]["text"]
        yield server
        assert http.get("/health").status_code == 200
        assert http.post("/v1/completions", json=GOOD).json()["choices"][0]["text"] == before
        assert "requests_in_work 0.0" in http.get("/metrics").text


@pytest.fixture(scope="module")
def check_answer(attacked: Any) -> Callable[[int, str], None]:
    """`check_answer(status, text)`: an answer, or an error of one line that tells nothing of the machine."""
    folders = [str(attacked.settings.experts), str(attacked.engine.tokenizer.directory), "site-packages"]

    def check(status: int, text: str) -> None:
        assert status < 500 or status in (503, 504), text
        assert not any(folder in text for folder in folders), text
        if status >= 400:
            message = json.loads(text)["error"]["message"]
            assert 0 < len(message) <= 500 and message.isprintable(), message
            assert "Traceback" not in message

    return check
