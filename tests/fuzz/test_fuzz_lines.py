"""Any line of a request or a task is refused in one line, or says what it says."""

import json

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from zweave.cli.request_lines import json_request, numbered
from zweave.errors import ZweaveError
from zweave.tasks import resolve_task

JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 300),
        st.floats(),
        st.sampled_from([10**30, "", "a", "\n", "\ud800", "a\u2028b"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)
MESSAGES = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.one_of(st.sampled_from(["user", "assistant", "system", "x"]), JUNK),
        st.one_of(st.just("Hi"), JUNK),
    ),
    max_size=3,
)
SAMPLING = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "seed", "else"), JUNK),
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.one_of(st.sampled_from(["Hello", [1, 2]]), JUNK),
        "messages": st.one_of(MESSAGES, JUNK),
        "expert": st.one_of(st.sampled_from(["sst2", {"a": 0.5, "b": 0.5}, {"a": [1, 2]}, "auto"]), JUNK),
        "max_tokens": st.one_of(st.integers(1, 9), JUNK),
        "stop": st.one_of(st.just(["\n"]), JUNK),
        "stop_token_ids": st.one_of(st.just([2]), JUNK),
        "ignore_eos": JUNK,
        "add_special_tokens": JUNK,
        "escape_special": JUNK,
        "sampling": st.one_of(SAMPLING, JUNK),
        "logprobs": JUNK,
        "salt": JUNK,
        "score": JUNK,
        "kv_reuse": st.one_of(st.just("exact"), JUNK),
        "template": JUNK,
        "raw": JUNK,
        "dispatcher": JUNK,
    },
)
SAMPLE = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.one_of(st.sampled_from(["Hello", "Bye"]), JUNK),
        "messages": st.one_of(MESSAGES, JUNK),
        "answer": st.one_of(st.sampled_from([" yes", " no"]), JUNK),
        "split": st.one_of(st.sampled_from(["train", "test", "validation", "dev"]), JUNK),
        "labels": st.one_of(st.just([" yes", " no"]), JUNK),
        "text": JUNK,
    },
)
SOUND = {"prompt": "Hello", "answer": " yes"}


def _or_none(call):
    try:
        return call()
    except ZweaveError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 700
        return None


@given(st.one_of(REQUEST, REQUEST.map(lambda fields: {"prompt": "Hello"} | fields)))
def test_any_request(fields):
    request = _or_none(lambda: json_request(json.dumps(fields), {"max_tokens": 7}))
    if request is None:
        return
    event("a request")
    assert request.prompt == fields.get("prompt")
    assert request.messages == fields.get("messages")
    assert request.max_tokens == fields.get("max_tokens", 7)
    assert list(request.score) == fields.get("score", [])


@given(st.one_of(st.text(max_size=40), st.sampled_from(["[" * 9999, "9" * 9999, '{"prompt": 1e999}', "NaN"])))
def test_any_text_as_a_request(text):
    for where, line in numbered(text.splitlines(keepends=True), "x.jsonl"):
        assert where.startswith("x.jsonl, line ")
        _or_none(lambda line=line: json_request(line, {}))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tasks") / "t.jsonl"


def _read(path, content):
    path.write_bytes(content)
    task = _or_none(lambda: resolve_task(str(path)))
    if task is None:
        return []
    found = [_or_none(lambda split=split: task.samples(split)) for split in ("train", "validation", "test")]
    event("a task")
    return [sample for samples in found for sample in samples or ()]


@given(st.lists(st.one_of(SAMPLE, st.just(SOUND)), max_size=4))
def test_any_samples(path, entries):
    content = "".join(json.dumps(entry) + "\n" for entry in entries)
    prompts = {entry.get("prompt") for entry in entries if isinstance(entry.get("prompt"), str)}
    for sample in _read(path, content.encode()):
        assert isinstance(sample.prompt, str) and isinstance(sample.answer, str) and sample.answer.strip()
        assert sample.prompt in prompts or "<|im_start|>" in sample.prompt


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_as_a_task(path, content, with_sample):
    _read(path, content + (b"\n" + json.dumps(SOUND).encode() if with_sample else b""))
