"""What the official client makes of answers and refusals, beyond plain completions."""

import asyncio
from typing import Any, Literal

import openai
import pytest
from pydantic import RootModel

from zweave.server.answers.admission import Admission

CHAT: dict[str, Any] = {"model": "a", "messages": [{"role": "user", "content": "x"}], "max_tokens": 60}


class Answer(RootModel[Literal["yes", "no"]]):
    """No object: the model of these tests has no token for a closing brace."""


def test_parse_gives_an_object_of_the_model(server: Any) -> None:
    told = server.openai().chat.completions.parse(
        **CHAT | {"max_tokens": 400}, response_format=Answer, seed=3
    )
    assert isinstance(told.choices[0].message.parsed, Answer)


def test_raw_responses_and_models(server: Any) -> None:
    raw = server.openai().chat.completions.with_raw_response.create(**CHAT, temperature=0)
    assert raw.headers["content-type"] == "application/json"
    assert (
        raw.parse().choices[0].message.content == raw.http_response.json()["choices"][0]["message"]["content"]
    )

    async def ask() -> tuple[list[str], str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            names = [model.id async for model in client.models.list()]
            whole = await client.completions.create(model="a", prompt="x", temperature=0)
            stream = await client.completions.create(model="a", prompt="x", temperature=0, stream=True)
            return names, whole.choices[0].text, "".join([chunk.choices[0].text async for chunk in stream])

    names, whole, streamed = asyncio.run(ask())
    assert names[0] == "tiny" and "a" in names and whole == streamed
    for name in ("tiny", "base"):
        found = server.openai().models.retrieve(name)
        assert (found.id, found.zweave, found.parent) == (name, {"kind": "base"}, None)


def test_refusals_are_the_clients_own_errors(start_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server(api_keys=("mine",))
    client = server.openai("mine")
    with pytest.raises(openai.AuthenticationError):
        server.openai("other").models.list()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**CHAT | {"model": "nobody"})
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError, match="temperature must be from 0 to 100"):
        client.chat.completions.create(**CHAT, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(**CHAT, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.PermissionDeniedError):
        client.post("/load_lora_adapter", body={"lora_name": "x", "lora_path": "x"}, cast_to=object)
    admit = Admission.admit

    def admit_when_full(admission: Admission, number: int) -> Any:
        admission.count = admission.most
        return admit(admission, number)

    monkeypatch.setattr(Admission, "admit", admit_when_full)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**CHAT)
    assert int(refused.value.response.headers["retry-after"]) >= 1
