"""A mixture that is changed over HTTP while its answer is streamed."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from zweave import Engine, Request, Sampling

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7]
BODY = {
    "model": "a",
    "prompt": PROMPT,
    "max_tokens": 24,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
}
MIXED = {"a": 0.25, "b": 0.75}


@pytest.fixture(scope="module")
def twin(tiny_engine: Callable[..., Engine]) -> Engine:
    """An engine like the server's, asked directly."""
    return tiny_engine()


@pytest.fixture
def server(start_server: Callable[..., Any]) -> Any:
    return start_server(api_keys=("one", "two"))


@pytest.fixture
def gate(server: Any) -> Iterator[threading.Semaphore]:
    """So many steps the engine may compute."""
    yield server.hold()
    server.steps.release(10000)


def client(server: Any, key: str = "one") -> httpx.Client:
    return server.http(headers={"Authorization": f"Bearer {key}"})


def chunks(stream: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in stream.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def rescaled_after(engine: Engine, request: Request, tokens: int, mixture: Any) -> str:
    """The text of an engine that is told to rescale when it has generated so many tokens."""
    text = ""
    for number, delta in enumerate(engine.stream(request), 1):
        text += delta.text
        if number == tokens:
            engine.rescale(delta.request_id, mixture)
    return text


@pytest.mark.parametrize(
    ("change", "mixture"),
    [
        ({"expert": MIXED}, MIXED),
        ({"expert": [{"id": "a", "scale": 0.25}, {"id": "b", "scale": 0.75}]}, MIXED),
        ({"model": "base"}, None),
    ],
)
def test_the_next_tokens_are_the_new_mixtures(
    server: Any, gate: threading.Semaphore, twin: Engine, change: Any, mixture: Any
) -> None:
    request = Request(PROMPT, expert="a", max_tokens=24, ignore_eos=True)
    wanted = rescaled_after(twin, request, 3, mixture)
    assert wanted != twin.generate(request)[0].text
    with client(server).stream("POST", "/v1/completions", json=BODY) as stream:
        told = chunks(stream)
        gate.release(3)
        first = [next(told) for _ in range(3)]
        answer = client(server).post(f"/v1/requests/{first[0]['id']}/rescale", json=change)
        assert (answer.status_code, answer.json()) == (200, {"id": first[0]["id"], "expert": mixture})
        gate.release(1000)
        assert "".join(chunk["choices"][0]["text"] for chunk in [*first, *told]) == wanted


def test_all_answers_change(server: Any, gate: threading.Semaphore, twin: Engine) -> None:
    prompts = [PROMPT, PROMPT[::-1]]
    body = BODY | {"prompt": prompts, "n": 2, "temperature": 1, "seed": 5}
    with client(server).stream("POST", "/v1/completions", json=body) as stream:
        told = chunks(stream)
        gate.release(3)
        first = next(told)
        client(server).post(f"/v1/requests/{first['id']}/rescale", json={"model": "b"})
        gate.release(1000)
        texts = [""] * 4
        for chunk in [first, *told]:
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    for index, text in enumerate(texts):
        sampling = Sampling(temperature=1, seed=5 + index % 2)
        request = Request(prompts[index // 2], expert="a", max_tokens=24, sampling=sampling, ignore_eos=True)
        never = twin.generate(request)[0].text
        # The step in which an answer begins depends on which requests came before the first.
        assert text in {rescaled_after(twin, request, tokens, "b") for tokens in range(1, 5)} - {never}


def test_only_a_client_of_the_same_key_and_only_while_it_is_answered(
    server: Any, gate: threading.Semaphore, twin: Engine
) -> None:
    wanted = twin.generate(Request(PROMPT, expert="a", max_tokens=24, ignore_eos=True))[0].text
    change = {"model": "b"}
    with client(server).stream("POST", "/v1/completions", json=BODY) as stream:
        told = chunks(stream)
        gate.release(1)
        first = next(told)
        path = f"/v1/requests/{first['id']}/rescale"
        for http, status in ((client(server, "two"), 404), (server.http(), 401)):
            assert http.post(path, json=change).status_code == status
        unknown = client(server).post("/v1/requests/cmpl-0/rescale", json=change)
        assert unknown.status_code == 404 and "'cmpl-0'" in unknown.json()["error"]["message"]
        for body, status, words in (
            ({"model": "c"}, 404, "there is no expert 'c'"),
            ({"model": "auto"}, 404, "--dispatcher"),
            ({"expert": {}}, 400, "empty"),
            ({"expert": {"a": [1.0]}}, 400, "1 weights, and the model has 2 layers"),
            ({}, 400, "give an expert or a model"),
            ({"model": "a", "expert": "b"}, 400, "give an expert or a model"),
            ({"model": "a", "weight": 1}, 400, "weight: there is no such field"),
        ):
            answer = client(server).post(path, json=body)
            assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), (
                answer.text
            )
        gate.release(1000)
        assert "".join(chunk["choices"][0]["text"] for chunk in [first, *told]) == wanted
    assert client(server).post(path, json=change).status_code == 404
