"""Whatever is wrong with a request ends in a 4xx with one clear line."""

import json
from typing import Any

import pytest

GOOD = {"model": "tiny", "prompt": "x", "max_tokens": 2}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/completions", GOOD | {"model": "c"}, 404, "there is no expert 'c'"),
        ("/v1/completions", GOOD | {"model": "a:x"}, 400, "a mixture is written NAME:WEIGHT+NAME:WEIGHT"),
        ("/v1/completions", GOOD | {"model": "a:1+a:2"}, 400, "names the expert 'a' twice"),
        ("/v1/completions", GOOD | {"model": "a:nan"}, 400, "finite"),
        ("/v1/completions", GOOD | {"model": "../a"}, 404, "there is no expert '../a'"),
        ("/v1/completions", GOOD | {"model": "a", "expert": "b"}, 400, "leave one of them out"),
        ("/v1/completions", GOOD | {"expert": [{"scale": 1.0}]}, 400, "give the expert's id"),
        ("/v1/completions", GOOD | {"expert": {"a": [1.0]}}, 400, "1 weights, and the model has 2 layers"),
        ("/v1/completions", GOOD | {"max_tokens": "5"}, 400, "max_tokens: Input should be a valid integer"),
        ("/v1/completions", GOOD | {"max_tokens": 0}, 400, "max_tokens must be"),
        ("/v1/completions", GOOD | {"temperature": -1}, 400, "temperature must be from 0 to 100"),
        ("/v1/completions", GOOD | {"n": 0}, 400, "n must be an integer from 1 to 1024"),
        ("/v1/completions", GOOD | {"n": 1000000}, 400, "n must be an integer from 1 to 1024"),
        ("/v1/completions", GOOD | {"prompt": ["x"] * 200}, 400, "200 prompts"),
        ("/v1/completions", GOOD | {"prompt": []}, 400, "the prompt is empty"),
        ("/v1/completions", GOOD | {"prompt": ""}, 400, "prompt is empty"),
        ("/v1/completions", GOOD | {"prompt": [1000]}, 400, "token ids must be integers from 0 to 95"),
        ("/v1/completions", GOOD | {"prompt": [3] * 5000}, 400, "tokens, and this model takes at most"),
        ("/v1/completions", GOOD | {"prompt": "\ud800"}, 400, "lone surrogate"),
        ("/v1/completions", GOOD | {"no_such": 1}, 400, "no_such: there is no such field"),
        ("/v1/completions", GOOD | {"salt": "x"}, 400, "salt: there is no such field"),
        ("/v1/completions", GOOD | {"logprobs": 101}, 400, "gives at most 20"),
        ("/v1/completions", GOOD | {"seed": -1}, 400, "seed must be"),
        ("/v1/completions", GOOD | {"template": "a"}, 400, "has no prompt template"),
        ("/v1/completions", GOOD | {"kv_reuse": "often"}, 400, "kv_reuse must be"),
        ("/v1/completions", GOOD | {"presence_penalty": 3}, 400, "presence_penalty must be from -2 to 2"),
        ("/v1/completions", GOOD | {"logit_bias": {"x": 1}}, 400, "logit_bias"),
        ("/v1/completions", GOOD | {"logit_bias": {"500": 1}}, 400, "token"),
        ("/v1/completions", GOOD | {"logit_bias": {"9" * 5000: 1}}, 400, "must have token ids as its keys"),
        ("/v1/completions", GOOD | {"a\n\ud800\x1b": 1}, 400, "unicode"),
        ("/v1/completions", GOOD | {"a\n\x1b" + "k" * 9000: 1}, 400, "a \\x1bkkk"),
        ("/v1/completions", GOOD | {"min_tokens": 9}, 400, "min_tokens must be at most max_tokens"),
        ("/v1/completions", GOOD | {"stop": ["x"] * 65}, 400, "should have at most 64 items"),
        ("/v1/completions", GOOD | {"stop": "x" * 1001}, 400, "stop: String should have at most 1000"),
        (
            "/v1/completions",
            GOOD | {"bad_words": ["x"] * 1001},
            400,
            "bad_words: List should have at most 1000",
        ),
        ("/v1/completions", GOOD | {"model": "+a:1" * 3000}, 400, "model: String should have at most 10000"),
        ("/v1/completions", GOOD | {"expert": {f"e{i}": 1 for i in range(257)}}, 400, "at most 256 items"),
        ("/v1/completions", GOOD | {"expert": {"a": [1.0] * 1025}}, 400, "at most 1024 items"),
        ("/v1/completions", [], 400, "the body must be a JSON object"),
        ("/v1/chat/completions", CHAT | {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "bot", "content": "x"}]}, 400, "role must be"),
        (
            "/v1/chat/completions",
            CHAT | {"messages": [{"role": "user", "content": 1}]},
            400,
            "messages.0.content",
        ),
        ("/v1/chat/completions", CHAT | {"top_logprobs": 2}, 400, "top_logprobs needs logprobs"),
        ("/tokenize", {}, 400, "give a prompt or messages"),
        ("/detokenize", {"tokens": [-1]}, 400, "token ids must be from 0 to 95"),
        ("/detokenize", {"tokens": [10**30]}, 400, "token"),
        ("/v1/experts?name=c", {}, 403, "--admin-key"),
        ("/v1/load_lora_adapter", {"lora_name": "c", "lora_path": "/etc/passwd"}, 403, "--admin-key"),
    ],
)
def test_bad_bodies(server: Any, path: str, body: Any, status: int, words: str) -> None:
    # As ASCII: httpx would refuse to encode a lone surrogate itself.
    answer = server.http().post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert words in message and "\n" not in message and len(message) <= 500


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model": "tiny", "prompt": ', "the body is not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100000, "nested too deeply"),
        (b'{"prompt": "x", "prompt": "y"}', "stands twice"),
        (b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}", "digits"),
        (b"", "the body must be a JSON object"),
        (b'{"prompt": "x", "temperature": NaN}', "temperature"),
        pytest.param(
            json.dumps({str(key): 0 for key in range(200_000)}).encode()[:-1] + b', "0": 0}',
            "the key '0' stands twice",
            id="a key twice among many",
        ),
    ],
)
def test_bodies_that_are_no_json(server: Any, content: bytes, words: str) -> None:
    answer = server.http().post(
        "/v1/completions", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_a_body_of_another_content_type(server: Any) -> None:
    answer = server.http().post("/v1/completions", content=json.dumps(GOOD))
    assert answer.status_code == 400 and "Content-Type: application/json" in answer.json()["error"]["message"]


def test_a_stream_that_cannot_begin_has_a_status(server: Any) -> None:
    for body, status in ((GOOD | {"prompt": [1000]}, 400), (GOOD | {"model": "c"}, 404)):
        answer = server.http().post("/v1/completions", json=body | {"stream": True})
        assert (answer.status_code, "error" in answer.json()) == (status, True)


def test_other_paths_and_methods(server: Any) -> None:
    assert server.http().get("/v1/nothing").status_code == 404
    assert server.http().get("/v1/completions").status_code == 405
    assert server.http().get("/v1/models/nobody").status_code == 404
    assert "error" in server.http().get("/v1/nothing").json()


def test_a_body_that_is_too_large(start_server: Any) -> None:
    server = start_server(max_body=1000)
    body = json.dumps(GOOD | {"prompt": "x" * 1000}).encode()
    headers = {"Content-Type": "application/json"}
    for content in (body, iter([body])):  # with and without its length told beforehand
        answer = server.http().post("/v1/completions", content=content, headers=headers)
        assert answer.status_code == 413 and "1000 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_likely_tokens_are_at_most_20(server: Any, field: str) -> None:
    body = {"prompt": "ab", "max_tokens": 1, "temperature": 0}
    few, many = (server.http().post("/v1/completions", json=body | {field: count}) for count in (20, 21))
    assert few.status_code == 200
    assert many.status_code == 400
    assert many.json()["error"]["message"] == f"{field} is 21, and this server gives at most 20"
