"""Who is let in, who waits, who leaves, and what is counted."""

import threading
import time
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

LONG = {"model": "a", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
SHORT = {"model": "a", "prompt": list(range(3, 40)), "max_tokens": 2, "temperature": 0, "ignore_eos": True}


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
