"""Answers over HTTP are the engine's, whichever way they are asked for."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import openai
import pytest

from zweave import Delta, Engine, Request, Result, Sampling
from zweave.server.responses.chat import ChatResponse

PROMPT = "hello world"
MIXTURE = {"a": 0.7, "b": 0.3}


@pytest.fixture(scope="module")
def twin(tiny_engine: Callable[..., Engine]) -> Engine:
    """An engine like the server's, asked directly."""
    return tiny_engine()


@pytest.mark.parametrize(
    ("fields", "expert"),
    [
        ({"model": "tiny"}, None),
        ({"model": "base"}, None),
        ({"model": "a"}, "a"),
        ({"model": "a:0.7+b:0.3"}, MIXTURE),
        ({"model": "tiny", "expert": MIXTURE}, MIXTURE),
        ({"model": "tiny", "expert": "a:0.7+b:0.3"}, MIXTURE),
        ({"model": "tiny", "expert": [{"id": "a", "scale": 0.7}, {"id": "b", "scale": 0.3}]}, MIXTURE),
        ({"model": "tiny", "expert": {"a": [0.5, 1.0], "b": 0.3}}, {"a": [0.5, 1.0], "b": 0.3}),
    ],
)
def test_model_or_expert_names_who_answers(server: Any, twin: Engine, fields: dict, expert: object) -> None:
    wanted = twin.generate(Request(PROMPT, expert=expert, max_tokens=12))[0]
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, **fields}
    answer = server.http().post("/v1/completions", json=body).json()
    choice = answer["choices"][0]
    assert choice["text"] == wanted.text
    assert choice["zweave"]["expert"] == wanted.expert
    assert answer["usage"]["prompt_tokens"] == wanted.prompt_tokens
    assert answer["usage"]["completion_tokens"] == len(wanted.token_ids)


def test_the_openai_client_gets_whole_and_streamed_answers(server: Any, twin: Engine) -> None:
    messages = [{"role": "user", "content": "hi there"}]
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=5)
    wanted = twin.generate(Request(messages=messages, expert="a", max_tokens=16, sampling=sampling))[0]
    asked: dict[str, Any] = {
        "model": "a", "messages": messages, "max_tokens": 16, "temperature": 0.8, "top_p": 0.9, "seed": 5,
    }  # fmt: skip
    client = server.openai()
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == wanted.text
    assert whole.choices[0].finish_reason == wanted.finish_reason
    assert whole.usage.completion_tokens == len(wanted.token_ids)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == wanted.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.total_tokens == wanted.prompt_tokens + len(wanted.token_ids)

    async def from_coroutine() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(**asked, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(from_coroutine()) == wanted.text


def test_logprobs_are_the_engines(server: Any, twin: Engine) -> None:
    wanted = twin.generate(Request(PROMPT, max_tokens=6, logprobs=2))[0].logprobs
    client = server.openai()
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2).choices[0].logprobs
    assert whole.token_logprobs == [token.logprob for token in wanted]
    assert [sorted(top.values()) for top in whole.top_logprobs] == [sorted(t.top.values()) for t in wanted]
    streamed = [
        chunk.choices[0].logprobs for chunk in client.completions.create(**asked, logprobs=2, stream=True)
    ]
    assert [value for part in streamed for value in part.token_logprobs] == whole.token_logprobs
    assert [offset for part in streamed for offset in part.text_offset] == whole.text_offset
    chat: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    told = (
        client.chat.completions.create(**chat, temperature=0, logprobs=True, top_logprobs=3)
        .choices[0]
        .logprobs
    )
    direct = twin.generate(Request(messages=chat["messages"], max_tokens=4, logprobs=3))[0].logprobs
    assert [token.logprob for token in told.content] == [token.logprob for token in direct]
    assert [len(token.top_logprobs) for token in told.content] == [3] * 4


def test_n_answers_differ_and_compute_the_prompt_once(start_server: Any) -> None:
    server = start_server()
    prompt = list(range(3, 67))
    body = {"model": "a", "prompt": prompt, "n": 4, "max_tokens": 8, "temperature": 1, "seed": 7}
    answer = server.http().post("/v1/completions", json=body | {"ignore_eos": True}).json()
    assert len({choice["text"] for choice in answer["choices"]}) == 4
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 64
    assert answer["usage"]["completion_tokens"] == 32
    # Each answer computes the prompt's last token for its logits, and at most a block beside what is shared.
    assert server.engine.stats().tokens_computed <= 64 + 3 * 17 + 4 * 7
    assert server.http().post("/v1/completions", json=body | {"ignore_eos": True}).json()["choices"] == [
        choice | {"zweave": choice["zweave"] | {"reuse": "same_mixture", "reused_tokens": 63}}
        for choice in answer["choices"]
    ]


def test_several_prompts_are_answered_in_order(server: Any, twin: Engine) -> None:
    prompts = ["one", "two words", "three more words"]
    body = {"model": "b", "prompt": prompts, "max_tokens": 5, "temperature": 0}
    answer = server.http().post("/v1/completions", json=body).json()
    wanted = twin.generate([Request(prompt, expert="b", max_tokens=5) for prompt in prompts])
    assert [choice["text"] for choice in answer["choices"]] == [result.text for result in wanted]
    chunks = server.openai().completions.create(**body, stream=True)
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [result.text for result in wanted]


def test_auto_tells_what_was_chosen(start_server: Any) -> None:
    from zweave.dispatch import FixedDispatcher

    server = start_server()
    body = {"model": "auto", "prompt": PROMPT, "max_tokens": 3, "temperature": 0}
    refused = server.http().post("/v1/completions", json=body)
    assert refused.status_code == 404 and "--dispatcher" in refused.json()["error"]["message"]
    server.engine.dispatcher = FixedDispatcher({"a": 0.5, "b": 0.5})
    choice = server.http().post("/v1/completions", json=body).json()["choices"][0]
    assert choice["zweave"]["expert"] == {"a": 0.5, "b": 0.5}
    assert choice["zweave"]["dispatch"]["confidence"] == 1.0
    assert "auto" in [model["id"] for model in server.http().get("/v1/models").json()["data"]]


def test_tokens_there_and_back(server: Any, twin: Engine) -> None:
    told = server.http().post("/tokenize", json={"prompt": PROMPT}).json()
    assert told["tokens"] == twin.tokenizer.encode(PROMPT)
    assert told["max_model_len"] == twin.max_length
    assert server.http().post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": PROMPT}
    messages = [{"role": "user", "content": "x"}]
    told = server.http().post("/tokenize", json={"messages": messages}).json()
    assert told["tokens"] == twin.tokenizer.chat(messages)


def test_an_answer_keeps_its_form(server: Any) -> None:
    asked: dict[str, Any] = {"model": "a", "messages": [{"role": "user", "content": "x"}], "n": 3, "seed": 1}
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"enum": [17, [True], "x"]}},
    }
    told = server.openai().chat.completions.create(**asked, response_format=schema)
    values = [json.loads(choice.message.content) for choice in told.choices]
    assert all(value in (17, [True], "x") for value in values)
    body = {
        "model": "b",
        "prompt": "x",
        "n": 3,
        "max_tokens": 40,
        "response_format": {"regex": "[0-9]{3}-[a-f]"},
    }
    choices = server.http().post("/v1/completions", json=body).json()["choices"]
    assert all(re.fullmatch("[0-9]{3}-[a-f]", choice["text"]) for choice in choices)


def test_calls_of_tools_are_told_apart_from_text(server: Any) -> None:
    """The answer is made to call: what is tested is how a call is told."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "1?"}],
        "response_format": {"choice": [call]}, "max_tokens": 200,
    }  # fmt: skip
    refused = server.http().post("/v1/chat/completions", json=body | {"tools": [tool]})
    assert refused.status_code == 400 and "tools" in refused.json()["error"]["message"]
    # The template of the tests' model knows no tools: the response is tested by itself.
    result = Result(call, [1], None, None, "stop", prompt_tokens=1)
    response = ChatResponse("tiny", server.engine.tokenizer, has_tools=True)
    (choice,) = response.whole([result])["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert list(response.chunks(0, Delta(1, "<tool", [1]))) == []
    [last] = next(response.chunks(0, Delta(1, ">", [2], result)))["choices"]
    assert last["delta"]["tool_calls"][0]["function"]["name"] == "add"
