"""Any tokenizer files are refused in one line, or texts become tokens of the vocabulary and come back."""

import copy
import json

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from zweave.errors import ZweaveError
from zweave.text import Tokenizer

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.sampled_from([2**32, 2**63, 10**30, 0.5]),
    st.text(max_size=6),
    st.lists(st.one_of(st.integers(-1, 9), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(-1, 300), max_size=2),
)
TOKEN = st.one_of(
    st.sampled_from(["<|im_end|>", "<|endoftext|>", "a", "", "<tool>", "é", "\n"]),
    st.builds(
        dict,
        content=st.one_of(st.sampled_from(["<tool>", "", "b"]), JUNK),
        special=st.booleans(),
        lstrip=st.booleans(),
        normalized=st.booleans(),
    ),
)
CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "bos_token": st.one_of(TOKEN, JUNK),
        "eos_token": st.one_of(TOKEN, JUNK),
        "pad_token": st.one_of(TOKEN, JUNK),
        "additional_special_tokens": st.one_of(st.lists(TOKEN, max_size=3), JUNK),
        "extra_special_tokens": st.one_of(st.lists(TOKEN, max_size=3), JUNK),
        "added_tokens_decoder": st.one_of(
            st.dictionaries(st.sampled_from(["259", "260", "3", "x", "-1", "9" * 30]), TOKEN, max_size=3),
            JUNK,
        ),
        "chat_template": st.one_of(
            st.sampled_from(["{{ messages[0].content }}", "{% if %}", "{{ x.y.z }}", "{{ 1/0 }}", ""]), JUNK
        ),
        "model_max_length": JUNK,
        "tokenizer_class": JUNK,
    },
)
OTHER_FILES = {
    "special_tokens_map.json": st.one_of(
        st.dictionaries(st.sampled_from(["eos_token", "pad_token"]), TOKEN), JUNK
    ),
    "added_tokens.json": st.one_of(st.dictionaries(st.sampled_from(["<tool>", "a", ""]), JUNK), JUNK),
    "generation_config.json": st.one_of(st.fixed_dictionaries({"eos_token_id": JUNK}), JUNK),
    "chat_template.jinja": st.sampled_from(["{{ messages }}", "{% for %}", "\ufeff{{ messages[0].role }}"]),
}
# Where tokenizer.json is changed: a path of keys.
PLACES = st.sampled_from(
    [
        ("truncation",),
        ("padding",),
        ("added_tokens",),
        ("normalizer",),
        ("pre_tokenizer",),
        ("post_processor",),
        ("decoder",),
        ("model",),
        ("model", "type"),
        ("model", "vocab"),
        ("model", "vocab", "a"),
        ("model", "merges"),
        ("model", "unk_token"),
        ("model", "dropout"),
        ("version",),
        ("a key of its own",),
    ]
)
TEXTS = st.text(max_size=12) | st.sampled_from(["<|im_end|>a", "<tool>", "\ud800", "  é\n"])


@pytest.fixture(scope="module")
def original(tiny_model):
    """The content of a tiny tokenizer.json."""
    return json.loads((tiny_model("llama") / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """A tokenizer of these files; None if it is refused, in one line."""
    directory = tmp_path_factory.mktemp("tokenizer")

    def read(files):
        for path in directory.iterdir():
            path.unlink()
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (directory / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        return _or_none(lambda: Tokenizer(directory))

    return read


def _or_none(call):
    try:
        return call()
    except ZweaveError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 600
        return None


def _use(tokenizer, text):
    """Every way from text to tokens and back."""
    for ids in (
        _or_none(lambda: tokenizer.encode(text)),
        _or_none(lambda: tokenizer.encode(text, special=False, escape_special=True)),
        _or_none(lambda: tokenizer.chat([{"role": "user", "content": text}])),
    ):
        if ids is not None:
            event("encoded")
            assert all(0 <= token < 1000 for token in ids)
            assert isinstance(tokenizer.decode(ids, skip_special=False), str)
    assert isinstance(tokenizer.eos_ids, tuple | list)


@given(
    CONFIG,
    st.fixed_dictionaries({}, optional=OTHER_FILES),
    TEXTS,
)
def test_any_files_beside_the_tokenizer(read, original, config, others, text):
    found = read({"tokenizer.json": original, "tokenizer_config.json": config, **others})
    if found is not None:
        _use(found, text)


@given(st.lists(st.tuples(PLACES, JUNK), min_size=1, max_size=2), TEXTS)
def test_any_tokenizer_json(read, original, changes, text):
    content = copy.deepcopy(original)
    for place, value in changes:
        node = content
        for key in place[:-1]:
            node = node.get(key) if isinstance(node.get(key), dict) else {}
        node[place[-1]] = value
    found = read({"tokenizer.json": content})
    if found is not None:
        _use(found, text)
        if {place for place, _ in changes} <= {("truncation",), ("padding",)}:
            assert found.encode("abc" * 9) == read({"tokenizer.json": original}).encode("abc" * 9)


@given(
    st.binary(max_size=30),
    st.integers(0, 3000),
    st.booleans(),
    st.sampled_from(["tokenizer.json", "tokenizer_config.json"]),
)
def test_any_bytes(read, original, piece, at, cut, name):
    files = {"tokenizer.json": json.dumps(original), "tokenizer_config.json": '{"eos_token": "<|im_end|>"}'}
    content = files[name].encode()
    mangled = content[:at] + piece + (b"" if cut else content[at + len(piece) :])
    found = read(
        files | {name: mangled.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()}
    )
    if found is not None:
        _use(found, "ab é")
