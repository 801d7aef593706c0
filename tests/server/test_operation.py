"""Who is let in, who waits, who leaves, and what is counted."""

import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from zweave.server.auth import Keys

LONG = {"model": "a", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
SHORT = {"model": "a", "prompt": list(range(3, 40)), "max_tokens": 2, "temperature": 0, "ignore_eos": True}


HEAD = (
    "POST {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer k\r\n"
    "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n"
)


def connected(server: Any) -> socket.socket:
    """A bare connection that takes in little at once."""
    end = socket.socket()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    end.settimeout(20)
    end.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    return end


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_clients_of_different_keys_share_no_cache(start_server: Any) -> None:
    server = start_server(api_keys=("one", "two"))
    assert server.http().post("/v1/completions", json=SHORT).status_code == 401
    assert server.http().get("/v1/models").status_code == 401
    assert server.http().get("/health").status_code == 200
    reused = []
    for key in ("one", "one", "two", "two"):
        http = server.http(headers={"Authorization": f"Bearer {key}"})
        told = http.post("/v1/completions", json=SHORT).json()
        reused.append(told["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert reused == [0, 36, 0, 36]
    assert server.openai("one").models.list().data[0].id == "tiny"


def test_a_key_is_compared_once(start_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server(api_keys=("one",))
    compared: list[str] = []
    tenant = Keys.tenant

    def counted(keys: Keys, headers: Any) -> str | None:
        compared.append(headers["authorization"])
        return tenant(keys, headers)

    monkeypatch.setattr(Keys, "tenant", counted)
    http = server.http(headers={"Authorization": "Bearer one"})
    assert http.post("/v1/completions", json=SHORT).status_code == 200
    assert compared == ["Bearer one"]


def test_a_stranger_is_turned_away_before_the_body_is_read(start_server: Any) -> None:
    server = start_server(api_keys=("mine",), admin_key="admin")
    paths = server.http().get("/openapi.json").json()["paths"]
    guarded = {(path, method) for path, calls in paths.items() for method in calls} - {
        ("/health", "get"),
        ("/metrics", "get"),
    }
    assert len(guarded) >= 10
    for path, method in guarded:
        told = server.http().request(method, path.format(name="a", response_id="a"), content=b"no JSON")
        assert told.status_code == 401, (method, path, told.text)


def test_more_than_it_takes_up_get_429(start_server: Any) -> None:
    server = start_server(max_waiting=2)
    server.slow_down()
    body = LONG | {"stream": True, "n": 2, "temperature": 1}
    with server.http().stream("POST", "/v1/completions", json=body) as first:
        assert first.status_code == 200
        told = server.http().post("/v1/completions", json=SHORT)
        assert told.status_code == 429 and int(told.headers["retry-after"]) >= 1
    wait_until(lambda: not server.engine.has_work)
    assert server.http().post("/v1/completions", json=SHORT).status_code == 200
    assert server.http().post("/v1/completions", json=SHORT | {"n": 3}).status_code == 400


def test_whoever_leaves_cancels_the_request(start_server: Any) -> None:
    server = start_server({"kv_tokens": 8192})
    server.slow_down()
    with server.http().stream("POST", "/v1/completions", json=LONG | {"stream": True}) as stream:
        next(stream.iter_lines())
        assert server.engine.has_work
    wait_until(lambda: not server.engine.has_work)
    computed = server.engine.stats().tokens_computed
    assert computed < 300
    # Not streamed, the client's patience is over before the answer is.
    body = LONG | {"prompt": ["x", "y", "z"], "max_tokens": 500}
    try:
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=0.1, trust_env=False)
    except httpx.ReadTimeout:
        wait_until(lambda: not server.engine.has_work)
        assert server.engine.stats().tokens_computed < computed + 1300


def test_a_request_that_takes_too_long(start_server: Any) -> None:
    server = start_server(request_timeout=0.02)
    server.slow_down()
    told = server.http().post("/v1/completions", json=LONG)
    assert told.status_code == 504 and "0.02 seconds" in told.json()["error"]["message"]
    lines = server.http().post("/v1/completions", json=LONG | {"stream": True}).text
    assert '"code":504' in lines and "[DONE]" not in lines
    wait_until(lambda: not server.engine.has_work)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/experts?name=x"])
def test_whoever_leaves_while_the_body_is_on_the_way_troubles_nobody(
    start_server: Any, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    server = start_server(admin_key="k")
    with connected(server) as end:
        end.sendall(HEAD.format(path, 500).encode() + b'{"prompt"')
        time.sleep(0.05)
    server.http().get("/health")
    time.sleep(0.05)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_body_that_does_not_come(start_server: Any) -> None:
    server = start_server(request_timeout=0.05)
    with connected(server) as end:
        end.sendall(HEAD.format("/v1/completions", 500).encode() + b'{"prompt"')
        told = b"".join(iter(lambda: end.recv(1000), b"")).decode()
    assert "408" in told.splitlines()[0] and "the body was not there within 0.05 seconds" in told


def test_bodies_that_are_too_many_together(start_server: Any) -> None:
    server = start_server(max_bodies=1000)
    held = server.uvicorn.config.app.state.served.bodies
    body = json.dumps(SHORT).encode() + b" " * 600
    headers = {"Content-Type": "application/json"}
    with connected(server) as end:
        end.sendall(HEAD.format("/v1/completions", len(body)).encode() + body[:500])
        wait_until(lambda: held.count == 500)
        told = server.http().post("/v1/completions", content=body, headers=headers)
        assert (told.status_code, told.headers["retry-after"]) == (429, "1")
        assert "of other requests take 500 of the 1000 bytes" in told.json()["error"]["message"]
        end.sendall(body[500:])
        assert end.recv(100).startswith(b"HTTP/1.1 200")
    # One that is alone may be larger.
    body += b" " * 1000
    assert server.http().post("/v1/completions", content=body, headers=headers).status_code == 200
    assert held.count == 0


def test_a_client_that_stops_reading_holds_no_place_for_ever(start_server: Any) -> None:
    server = start_server({"kv_tokens": 8192}, request_timeout=1)
    many = {"n": 16, "temperature": 1, "logprobs": 20, "stream": True, "max_tokens": 400}
    body = json.dumps(LONG | many).encode()
    with connected(server) as end:
        end.sendall(HEAD.format("/v1/completions", len(body)).encode() + body)
        wait_until(lambda: server.in_work() == 16)
        wait_until(lambda: not server.in_work())
        # The engine drops them before its next step.
        wait_until(lambda: not server.engine.has_work)
        read = 0
        while part := end.recv(1 << 20):
            read += len(part)
            end_of_stream = part
    assert read > 65536 and b"[DONE]" not in end_of_stream


def test_what_prometheus_is_told(start_server: Any) -> None:
    server = start_server()
    for model in ("tiny", "a", "a:0.5+b:0.5"):
        server.http().post("/v1/completions", json=SHORT | {"model": model})
    text = server.http().get("/metrics").text
    samples = {
        (sample.name, sample.labels.get("kind")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "bucket" not in sample.name
    }
    for kind in ("base", "expert", "mixture"):
        assert samples["zweave_requests_total", kind] == 1
    assert samples["zweave_generated_tokens_total", None] == 6
    assert samples["zweave_prompt_tokens_total", None] == 3 * 37
    assert samples["zweave_time_to_first_token_seconds_count", None] == 3
    assert samples["zweave_inter_token_latency_seconds_count", None] == 3
    assert samples["zweave_requests_in_work", None] == 0
    assert samples["zweave_experts_loaded", None] == 3


def test_many_clients_at_once_get_their_own_answers(start_server: Any) -> None:
    server = start_server()
    wanted = {
        (model, start): server.http().post(
            "/v1/completions", json=SHORT | {"model": model, "prompt": list(range(start, start + 20)), "max_tokens": 12}
        ).json()["choices"][0]["text"]
        for model in ("tiny", "a", "b", "late")
        for start in range(3, 11)
    }  # fmt: skip
    wrong: list[Any] = []

    def ask(model: str, start: int) -> None:
        body = SHORT | {"model": model, "prompt": list(range(start, start + 20)), "max_tokens": 12}
        told = server.http().post("/v1/completions", json=body).json()
        if told["choices"][0]["text"] != wanted[model, start]:
            wrong.append((model, start, told))

    threads = [threading.Thread(target=ask, args=key) for key in wanted for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
