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


def _some(sensible):
    """Sensible values for some of the keys, with up to one that is anything."""
    return st.builds(
        lambda one, other: one | other,
        st.fixed_dictionaries({}, optional=sensible),
        st.dictionaries(st.sampled_from([*sensible, "else"]), JUNK, max_size=1),
    )


SAMPLING = _some(
    {
        "temperature": st.sampled_from([0, 0.7]),
        "top_k": st.just(3),
        "top_p": st.sampled_from([1, 0.5]),
        "min_p": st.just(0.1),
        "seed": st.integers(0, 9),
    }
)
REQUEST = _some(
    {
        "expert": st.sampled_from(["sst2", {"a": 0.5, "b": 0.5}, {"a": [1, 2]}, "auto", None]),
        "max_tokens": st.integers(1, 9),
        "stop": st.sampled_from([["\n"], "a", None]),
        "stop_token_ids": st.just([2]),
        "ignore_eos": st.booleans(),
        "add_special_tokens": st.sampled_from([True, False, None]),
        "escape_special": st.booleans(),
        "sampling": SAMPLING,
        "logprobs": st.integers(0, 3),
        "salt": st.just("a"),
        "score": st.lists(st.integers(0, 9), max_size=2),
        "kv_reuse": st.sampled_from(["exact", "approximate"]),
        "template": st.just("trec"),
        "raw": st.just(False),
    }
)
PROMPT = st.one_of(
    st.builds(lambda prompt: {"prompt": prompt}, st.one_of(st.sampled_from(["Hello", [1, 2]]), JUNK)),
    st.builds(lambda messages: {"messages": messages}, st.one_of(MESSAGES, JUNK)),
)
SAMPLE = st.builds(
    lambda prompt, fields: prompt | fields,
    PROMPT,
    _some({"answer": st.sampled_from([" yes", " no"]), "text": st.just("b")}),
)
LABELS = st.one_of(st.just({"labels": [" yes", " no"]}), st.builds(lambda value: {"labels": value}, JUNK))
SPLITS = st.sampled_from(["train", "test", "validation", "dev"])
SOUND = {"prompt": "Hello", "answer": " yes"}


def _or_none(call):
    try:
        return call()
    except ZweaveError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 700
        return None


@given(st.one_of(PROMPT, st.just({"prompt": "Hello"})), REQUEST)
def test_any_request(prompt, fields):
    fields = prompt | fields
    request = _or_none(lambda: json_request(json.dumps(fields), {"max_tokens": 7}))
    if request is None:
        return
    event("a request")
    assert repr(request.prompt) == repr(fields.get("prompt"))  # NaN is not itself
    assert repr(request.messages) == repr(fields.get("messages"))
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


@given(
    st.builds(
        lambda labels, samples, last: [*labels, *samples, *last],
        st.lists(LABELS, max_size=1),
        st.lists(st.one_of(st.just(SOUND), SPLITS.map(lambda split: SOUND | {"split": split})), max_size=4),
        st.lists(SAMPLE, max_size=1),
    )
)
def test_any_samples(path, entries):
    content = "".join(json.dumps(entry) + "\n" for entry in entries)
    prompts = {entry.get("prompt") for entry in entries if isinstance(entry.get("prompt"), str)}
    for sample in _read(path, content.encode()):
        assert isinstance(sample.prompt, str) and isinstance(sample.answer, str) and sample.answer.strip()
        assert sample.prompt in prompts or "<|im_start|>" in sample.prompt


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_as_a_task(path, content, with_sample):
    _read(path, content + (b"\n" + json.dumps(SOUND).encode() if with_sample else b""))
