"""`echo`: the prompt before its answers, as vLLM and lm-evaluation-harness have it."""

from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from zweave import Engine, Expert, Request, Sampling

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7]


@pytest.fixture(scope="module")
def twin(tiny_engine: Callable[..., Engine]) -> Engine:
    """An engine like the server's, asked directly."""
    return tiny_engine()


def asked(server: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": "a", "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "echo": True, **fields}
    answer = server.http().post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(server: Any, **fields: Any) -> list[list[Any]]:
    """The choices of a stream's chunks, by their index."""
    body: dict[str, Any] = {"model": "a", "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "echo": True}
    found: dict[int, list[Any]] = {}
    for chunk in server.openai().completions.create(**body, stream=True, extra_body=fields):
        found.setdefault(chunk.choices[0].index, []).append(chunk.choices[0])
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("prompt", ["hello world", PROMPT])
def test_the_prompt_stands_before_the_answer(server: Any, twin: Engine, prompt: Any) -> None:
    text = prompt if isinstance(prompt, str) else twin.tokenizer.decode(prompt, skip_special=False)
    wanted = twin.generate(Request(prompt, expert="a", max_tokens=4))[0]
    told = asked(server, prompt=prompt)
    assert told["choices"][0]["text"] == text + wanted.text
    assert told["choices"][0]["logprobs"] is None
    assert told["usage"]["completion_tokens"] == len(wanted.token_ids)
    [chunks] = streamed(server, prompt=prompt)
    assert chunks[0].text == text
    assert "".join(chunk.text for chunk in chunks) == text + wanted.text
    assert asked(server, prompt=prompt, echo=False)["choices"][0]["text"] == wanted.text


def test_log_probabilities_equal_transformers(
    server: Any,
    twin: Engine,
    tiny_model: Callable[..., Path],
    random_expert: Callable[..., Expert],
    merged_logits: Callable[..., Tensor],
) -> None:
    directory = tiny_model("llama", vocab_size=96)
    experts = {"a": random_expert(twin.model.config.adapted_shapes(), seed=1)}
    told = asked(server, logprobs=3)
    found = told["choices"][0]["logprobs"]
    answer = twin.generate(Request(PROMPT, expert="a", max_tokens=4))[0].token_ids
    ids = [*PROMPT, *answer]
    rows = merged_logits(directory, experts, "a", ids).log_softmax(-1)
    wanted = [float(row[token]) for row, token in zip(rows, ids[1:], strict=False)]
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-4)
    for top, row in zip(found["top_logprobs"][1:], rows, strict=False):
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-4)
    assert found["tokens"] == [twin.tokenizer.decode([token], skip_special=False) for token in ids]
    assert found["text_offset"] == [len("".join(found["tokens"][:place])) for place in range(len(ids))]
    assert "prompt_logprobs" not in told["choices"][0]["zweave"]


def test_no_token_gives_the_prompt_alone(server: Any, twin: Engine) -> None:
    whole = asked(server, logprobs=1)["choices"][0]["logprobs"]
    told = asked(server, logprobs=1, max_tokens=0)
    choice = told["choices"][0]
    assert choice["text"] == twin.tokenizer.decode(PROMPT, skip_special=False)
    assert choice["logprobs"] == {name: values[: len(PROMPT)] for name, values in whole.items()}
    assert choice["finish_reason"] == "length"
    assert told["usage"]["completion_tokens"] == 0
    assert told["usage"]["total_tokens"] == len(PROMPT)
    [chunks] = streamed(server, logprobs=1, max_tokens=0)
    assert "".join(chunk.text for chunk in chunks) == choice["text"]
    assert [v for chunk in chunks for v in chunk.logprobs.token_logprobs] == whole["token_logprobs"][:10]
    assert chunks[-1].finish_reason == "length"


def test_several_answers_to_several_prompts_each_with_its_prompt(start_server: Any, twin: Engine) -> None:
    # A prompt of many steps that the cache holds for the second answer, while the first one computes all of it.
    server = start_server({"max_batch_tokens": 8, "max_sequences": 8})
    prompts = [list(range(3, 43)), list(range(50, 90))]
    fields = {
        "prompt": prompts, "n": 2, "temperature": 1, "seed": 3, "max_tokens": 5, "logprobs": 2, "ignore_eos": True,
    }  # fmt: skip
    asked(server, **fields)
    choices = asked(server, **fields)["choices"]
    parts = streamed(server, **fields)
    sampling = Sampling(temperature=1, seed=3)
    for index, (choice, chunks) in enumerate(zip(choices, parts, strict=True)):
        prompt = prompts[index // 2]
        request = Request(prompt, expert="a", n=2, max_tokens=5, sampling=sampling, ignore_eos=True)
        answer = twin.generate(request)[0].samples[index % 2]
        text = twin.tokenizer.decode(prompt, skip_special=False)
        assert choice["text"] == text + answer.text == "".join(chunk.text for chunk in chunks)
        assert chunks[0].text == text
        for name in ("tokens", "token_logprobs", "text_offset"):
            values = [value for chunk in chunks for value in getattr(chunk.logprobs, name)]
            assert values == choice["logprobs"][name] and len(values) == 45


def test_lm_evaluation_harness_reads_the_likelihood_of_a_continuation(server: Any, twin: Engine) -> None:
    """What its `local-completions` sends, and how it reads the answer."""
    contexts, continuations = ([3, 14, 15], [50, 7]), ([9, 26], [8, 8, 8])
    body = {
        "model": "a",
        "prompt": [context + continuation for context, continuation in zip(contexts, continuations, strict=True)],
        "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True,
    }  # fmt: skip
    out = server.http().post("/v1/completions", json=body).json()
    read = []
    for choice, context in zip(sorted(out["choices"], key=itemgetter("index")), contexts, strict=True):
        values = choice["logprobs"]["token_logprobs"][len(context) : -1]
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        read.append((sum(values), all(v == max(top.values()) for v, top in zip(values, tops, strict=True))))
    for (found, is_greedy), context, continuation in zip(read, contexts, continuations, strict=True):
        wanted, tokens, greedy = 0.0, list(context), True
        for token in continuation:
            request = Request(tokens, expert="a", max_tokens=1, score=[token])
            result = twin.generate(request)[0]
            wanted += result.scores[0]
            greedy &= result.token_ids == [token]
            tokens.append(token)
        assert found == pytest.approx(wanted, abs=1e-5)
        assert is_greedy == greedy


def test_a_greedy_continuation_is_told_as_one(server: Any, twin: Engine) -> None:
    continuation = twin.generate(Request(PROMPT, expert="a", max_tokens=3, ignore_eos=True))[0].token_ids
    found = asked(server, prompt=[[*PROMPT, *continuation]], max_tokens=1, logprobs=1)["choices"][0][
        "logprobs"
    ]
    tail = slice(len(PROMPT), -1)
    for value, top in zip(found["token_logprobs"][tail], found["top_logprobs"][tail], strict=True):
        assert value == max(top.values())
