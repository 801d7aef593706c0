"""`zweave serve` in a process of its own: how it starts, is refused, and stops."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from zweave.cli.main import main


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--experts", "nowhere"], "nowhere is no directory"),
        (["--port", "0"], "--port must be from 1 to 65535"),
        (["--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid"),
        (["--alias", "x"], "--alias is written NAME=EXPERT"),
        (["--alias", "x=a:b"], "a mixture is written NAME:WEIGHT"),
        (["--alias", "auto=a"], "reserved"),
        (["--api-key", "k", "--admin-key", "k"], "the admin key is an API key too"),
        (["--api-key", ""], "a key must not be empty"),
        (["--load", "a=nowhere.safetensors"], "nowhere.safetensors"),
        (["--max-sequences", "1000"], "max_batch_tokens (512) must be at least max_sequences (1000)"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_model_loads(
    options: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["serve", "no-model", *options]) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert main(["serve", "no-model", "--port", str(other.getsockname()[1])]) == 1
    assert "cannot listen at 127.0.0.1" in capsys.readouterr().err


def test_what_runs_may_end_when_it_is_told_to_stop(tiny_model_and_expert: tuple[str, str]) -> None:
    model, expert = tiny_model_and_expert
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "zweave.cli.main",
        "serve",
        model,
        "--port",
        str(port),
        "--load",
        f"e={expert}",
    ]
    process = subprocess.Popen(command, cwd=Path(expert).parent, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 120
        while True:
            try:
                assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
                break
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.1)
        # So many that they are in work until the server is told to stop.
        body = {"model": "e", "prompt": "x", "n": 32, "max_tokens": 450, "ignore_eos": True}
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)
            )
        )
        asking.start()
        while b"requests_in_work 32.0" not in httpx.get(f"{url}/metrics", trust_env=False).content:
            assert asking.is_alive()
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert answers[0].json()["usage"]["completion_tokens"] == 32 * 450
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
