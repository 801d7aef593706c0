"""Text to tokens and back, streamed text, and chat templates, against transformers."""

import codecs
import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from zweave.errors import ZweaveError
from zweave.text import Tokenizer
from zweave.text.detokenizer import IncrementalDetokenizer

USER = [{"role": "user", "content": "Why?"}]
ANSWERED = [*USER, {"role": "assistant", "content": "So"}]


@pytest.fixture(scope="module")
def directory(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def byte_level(directory):
    return Tokenizer(directory)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A tokenizer as Llama 2's: spaces are ▁, one is put before a text, and bytes are the last resort."""
    directory = tmp_path_factory.mktemp("sentencepiece")
    words = ["▁", "▁h", "▁hi", "h", "i", "é", "▁▁"]
    vocabulary = {
        token: index
        for index, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words])
    }
    merges = [("▁", "h"), ("▁h", "i"), ("▁", "▁")]
    library = Library(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")]
    )
    library.save(str(directory / "tokenizer.json"))
    return Tokenizer(directory)


@pytest.fixture
def with_template(directory, tmp_path):
    """The tokenizer with another chat template."""

    def make(template):
        shutil.copy(directory / "tokenizer.json", tmp_path)
        config = {"bos_token": {"content": "<|endoftext|>"}, "chat_template": template}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return Tokenizer(tmp_path)

    return make


@given(text=st.text())
def test_byte_level_round_trip(byte_level, text):
    assert byte_level.decode(byte_level.encode(text), skip_special=False) == text


@given(ids=st.lists(st.integers(0, 300)))
def test_decode_equals_the_library(byte_level, ids):
    library = Library.from_file(str(byte_level.directory / "tokenizer.json"))
    for skip in (True, False):
        assert byte_level.decode(ids, skip_special=skip) == library.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("text", ["hi hi", " hi", "  hi", "é hi", "日本 é", "", " "])
def test_sentencepiece_equals_the_library(sentencepiece, text):
    library = Library.from_file(str(sentencepiece.directory / "tokenizer.json"))
    ids = sentencepiece.encode(text)
    assert ids == library.encode(text).ids
    assert sentencepiece.decode(ids) == library.decode(ids) == text


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@given(ids=st.lists(st.integers(0, 270)), skip_special=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_streamed_text_is_the_text(request, kind, ids, skip_special):
    tokenizer = request.getfixturevalue(kind)
    stream = IncrementalDetokenizer(tokenizer, skip_special=skip_special)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, skip_special)


def test_stream_holds_back_unfinished_characters(byte_level):
    stream = IncrementalDetokenizer(byte_level)
    pieces = [stream.add(token) for token in byte_level.encode("aé日🙂")]
    assert pieces == ["a", "", "é", "", "", "日", "", "", "", "🙂"]
    assert stream.add(byte_level.encode("🙂")[0]) == ""
    assert stream.finish() == "\ufffd"


def test_space_after_a_prompt_is_kept(sentencepiece):
    (hi,) = sentencepiece.encode("hi")
    assert IncrementalDetokenizer(sentencepiece).add(hi) == "hi"
    assert IncrementalDetokenizer(sentencepiece, context=[1, hi]).add(hi) == " hi"


def test_special_tokens_give_no_text(byte_level):
    ids = byte_level.encode("a<|im_end|>b")
    assert len(ids) == 3
    assert byte_level.decode(ids) == "ab"
    assert byte_level.decode(ids, skip_special=False) == "a<|im_end|>b"


def test_lone_surrogate_is_refused(byte_level):
    with pytest.raises(ZweaveError, match="lone surrogate"):
        byte_level.encode("a\ud800")


@pytest.mark.parametrize(
    "messages",
    [
        USER,
        ANSWERED,
        [{"role": "system", "content": "S\n"}, *ANSWERED, *USER],
        [*ANSWERED, *USER, {"role": "assistant", "content": "Why? So "}],
    ],
    ids=["user", "continued", "system", "continued-space"],
)
def test_chat_equals_transformers(directory, byte_level, messages):
    continued = messages[-1]["role"] == "assistant"
    expected = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        messages,
        add_generation_prompt=not continued,
        continue_final_message=continued,
        tokenize=False,
    )
    assert byte_level.decode(byte_level.chat(messages), skip_special=False) == expected


def test_continuing_nothing_opens_the_turn(byte_level):
    assert byte_level.chat([*USER, {"role": "assistant", "content": ""}]) == byte_level.chat(USER)


def test_assistant_header(byte_level):
    assert byte_level.decode(byte_level.assistant_header, False) == "<|im_end|>\n<|im_start|>assistant\n"
    assert byte_level.eos_ids == (2,)


def test_header_of_a_template_that_trims(with_template):
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = with_template(template)
    assert tokenizer.decode(tokenizer.assistant_header, False) == " [/INST]"
    assert tokenizer.decode(tokenizer.chat(ANSWERED), False) == "<|endoftext|>[INST] Why? [/INST]So"


def test_after_prompt_start(byte_level):
    header = byte_level.assistant_header
    first = byte_level.chat(USER)
    start = byte_level.after_prompt_start(first)
    assert first[start:] == header
    again = [*first, 5, 6, *first, 7]
    assert byte_level.after_prompt_start(again) == len(first) + 2 + start
    continued = byte_level.chat(ANSWERED)
    assert continued[byte_level.after_prompt_start(continued) :] == header + byte_level.encode("So")
    assert byte_level.after_prompt_start([5, 6, 7]) == 2
    assert byte_level.after_prompt_start([5]) == 0
    assert byte_level.after_prompt_start(header[:-2]) == len(header) - 3
    # White space after the header may join its last line break in one token: the header is found all the same.
    assert byte_level.after_prompt_start([*first, 7, *header[:-1], 9]) == len(first) + 1


def test_template_sources(directory, with_template, tmp_path):
    named = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": "{{ messages[0].content }}!"},
    ]
    tokenizer = with_template(named)
    assert tokenizer.decode(tokenizer.chat(USER)) == "Why?!"
    (tmp_path / "chat_template.jinja").write_text(
        "file {% generation %}{{ messages[0].role }}{% endgeneration %}"
    )
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.chat(USER)) == "file user"


def test_byte_order_marks_are_no_content(directory, byte_level, tmp_path):
    """In front of every file; in a template's it would be the first character of each prompt."""
    for file in directory.glob("*.json"):
        (tmp_path / file.name).write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    marked = Tokenizer(tmp_path)
    assert marked.chat(USER) == byte_level.chat(USER) and marked.eos_ids == byte_level.eos_ids
    (tmp_path / "chat_template.jinja").write_text("\ufeff{{ messages[0].content }}")
    assert Tokenizer(tmp_path).chat(USER) == byte_level.encode("Why?")


def test_template_globals(with_template):
    tokenizer = with_template("{{ strftime_now('%Y') | length }}{{ {'a': '<é>'} | tojson }}{{ bos_token }}")
    assert tokenizer.decode(tokenizer.chat(USER), False) == '4{"a": "<é>"}<|endoftext|>'


def test_no_template(directory, tmp_path):
    shutil.copy(directory / "tokenizer.json", tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.assistant_header == []
    assert tokenizer.eos_ids == ()
    assert tokenizer.after_prompt_start([1, 2, 3]) == 2
    with pytest.raises(ZweaveError, match="no chat template"):
        tokenizer.chat(USER)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "refuses the messages"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|append"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for i in range(10**9) %}{% endfor %}", "[Rr]ange too big"),
    ],
)
def test_template_that_refuses(with_template, template, message):
    with pytest.raises(ZweaveError, match=message) as caught:
        with_template(template).chat(USER)
    assert "\n" not in str(caught.value)


def test_template_that_drops_the_answer(with_template):
    with pytest.raises(ZweaveError, match="cannot be continued"):
        with_template("{{ messages[0].content }}").chat(ANSWERED)


@pytest.mark.parametrize("template", ["{% if %}", "{{", 7, [{"name": "default", "template": 1}]])
def test_malformed_template(with_template, template):
    with pytest.raises(ZweaveError, match="template"):
        with_template(template)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "Why?",
        ["Why?"],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "bot", "content": "x"}],
        [{"role": ["user"], "content": "x"}],
        [{"content": "x"}],
    ],
    ids=str,
)
def test_malformed_messages(byte_level, messages):
    with pytest.raises(ZweaveError, match=r"messages must be|a message"):
        byte_level.chat(messages)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "BPE"}}'])
def test_malformed_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ZweaveError, match=r"tokenizer\.json is damaged"):
        Tokenizer(tmp_path)


def test_unsupported_or_missing_tokenizer(tmp_path):
    with pytest.raises(ZweaveError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    library = Library(models.WordLevel({"a": 0}, unk_token="a"))
    library.decoder = decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ZweaveError, match="WordPiece"):
        Tokenizer(tmp_path)
