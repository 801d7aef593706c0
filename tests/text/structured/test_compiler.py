"""Formats compiled for tokenizers of both kinds: which texts they take, and what they refuse."""

import json
import re
import shutil
import sys
from string import ascii_lowercase

import pytest
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Library

from zweave.errors import ZweaveError
from zweave.text import Tokenizer
from zweave.text.structured import FormatCompiler, ResponseFormat, compiler

POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


@pytest.fixture(scope="module")
def byte_level(tiny_model):
    return Tokenizer(tiny_model("llama"))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """As Llama 2's: spaces are ▁, one is put before a text, and bytes are the last resort."""
    directory = tmp_path_factory.mktemp("sentencepiece")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "h", "i", "▁h", "▁hi", "é"]
    library = Library(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[("▁", "h"), ("▁h", "i")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    library.add_tokens([AddedToken("<tool_call>", special=False)])
    library.save(str(directory / "tokenizer.json"))
    (directory / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    return Tokenizer(directory)


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def formats(tokenizer):
    return FormatCompiler(tokenizer, vocab_size=280)


def next_ids(matcher):
    return [token for token, byte in enumerate(matcher.compute_logit_bias()) if byte]


def test_tokens_are_the_bytes_of_their_text(tokenizer, formats):
    """Those that give no text are no text to a format either; nor is an added one in angle brackets."""
    whole = formats.matcher(ResponseFormat(grammar="start: /(.|\\n)*/"))
    allowed = {token for token in next_ids(whole) if token not in tokenizer.eos_ids}
    starts = {
        token
        for token in range(280)
        if (text := tokenizer.token_bytes.of(token, skip_special=True))
        and (text[0] < 0x80 or 0xC2 <= text[0] <= 0xF4)
    }
    assert allowed == {token for token in starts if not tokenizer.token_bytes.is_added(token)}
    for token in allowed:
        text = tokenizer.token_bytes.of(token, skip_special=True)
        if text.isascii():
            matcher = formats.matcher(ResponseFormat(choice=[text.decode()]))
            assert matcher.consume_token(token) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("fields", "accepted", "refused"),
    [
        ({"regex": "[0-9]{2}|hi hi"}, ["12", "hi hi"], ["1", "123", " hi"]),
        ({"regex": "^a+$"}, ["a", "aa"], ["", "b"]),
        (
            {"choice": ["a", "ab", 'é\n"q"\\', "日🙂", "<s>"]},
            ["a", "ab", 'é\n"q"\\', "日🙂", "<s>"],
            ["b", ""],
        ),
        ({"grammar": 'start: "(" start ")" | "x"'}, ["x", "((x))"], ["((x)", "x)"]),
        ({"grammar": 'root ::= "a" root | "b"'}, ["b", "aab"], ["a", "bb"]),
        ({"json_object": True}, ["{}", '{"a": [1, null]}', '{"a":{}}'], ["[]", "1", "{", '{"a"}']),
        (
            {"json_schema": POINT},
            ['{"x": 1}', '{"x":-1}', '{\n  "x": 1\n}'],
            ["{}", '{"x": 1.5}', '{"x":1} '],
        ),
        ({"json_schema": json.dumps(POINT)}, ['{"x":' + " " * 32 + "1}"], ['{"x":' + " " * 33 + "1}"]),
    ],
)
def test_texts(tokenizer, formats, fields, accepted, refused):
    special = [tokenizer.token_bytes.of(token, skip_special=True) for token in range(280)]
    one_byte = {text[0]: token for token, text in enumerate(special) if len(text) == 1}

    def takes(text):
        matcher = formats.matcher(ResponseFormat(**fields))
        tokens = [one_byte[byte] for byte in text.encode()]
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    assert [text for text in accepted if not takes(text)] == []
    assert [text for text in refused if takes(text)] == []


def test_an_answer_ends_at_any_end_token_and_only_where_it_is_complete(sentencepiece):
    matcher = FormatCompiler(sentencepiece, 280).matcher(ResponseFormat(choice=["h", "hi"]))
    h, i = (sentencepiece.token_bytes.of(token, True) for token in (260, 261))
    assert (h, i) == (b"h", b"i")
    assert not {0, 2} & {*next_ids(matcher)}
    matcher.consume_token(260)
    assert {0, 2, 261} <= {*next_ids(matcher)}
    matcher.consume_token(261)
    assert {*next_ids(matcher)} == {0, 2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regex": "a("}, "the regex is refused: .*unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"[^\s\S]"}, "no text that it allows"),
        ({"grammar": "start: nowhere"}, "the grammar is refused: .*unknown name"),
        ({"grammar": "start: start"}, "no text that it allows"),
        ({"grammar": "anything"}, "the grammar is refused"),
        ({"json_schema": {"type": "text"}}, "the json_schema is refused: Invalid type: text"),
        ({"json_schema": {"not": {}}}, "Unimplemented keys: ..not"),
        ({"json_schema": {"$ref": "http://localhost/a.json"}}, "does not fetch resources"),
        ({"json_schema": {"minimum": 2, "maximum": 1, "type": "integer"}}, "minimum .2. is greater"),
        ({"json_schema": {"type": "string", "pattern": "("}}, "unclosed group"),
    ],
)
def test_what_cannot_be_compiled_is_one_line(byte_level, fields, message):
    with pytest.raises(ZweaveError, match=message) as caught:
        FormatCompiler(byte_level, 264).matcher(ResponseFormat(**fields))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_long_chain_of_rules_does_not_overflow_the_stack(byte_level):
    names = [a + b + c for a in ascii_lowercase for b in ascii_lowercase for c in ascii_lowercase][:9000]
    rules = [f"{one}:{other}\n" for one, other in zip(["start", *names[:-1]], names, strict=True)]
    grammar = "".join(rules) + f'{names[-1]}:"x"'
    matcher = FormatCompiler(byte_level, 264).matcher(ResponseFormat(grammar=grammar))
    assert next_ids(matcher) == byte_level.encode("x")


def test_a_compilation_has_a_time_limit(byte_level, monkeypatch):
    monkeypatch.setattr(compiler, "MAX_SECONDS", 0.0)
    words = {"enum": [f"word {index}" for index in range(5000)]}
    with pytest.raises(ZweaveError, match="takes more than 0 s to compile"):
        FormatCompiler(byte_level, 264).matcher(ResponseFormat(json_schema=words))


def test_compiled_once(byte_level, monkeypatch):
    formats = FormatCompiler(byte_level, 264)
    first = formats.matcher(ResponseFormat(regex="ab"))
    first.consume_tokens(byte_level.encode("a"))
    monkeypatch.setattr(compiler, "_start", None)
    assert next_ids(formats.matcher(ResponseFormat(regex="ab"))) == byte_level.encode("a")
    assert next_ids(first) == byte_level.encode("b")


def test_without_an_end_token(byte_level, tmp_path):
    shutil.copy(byte_level.directory / "tokenizer.json", tmp_path)
    with pytest.raises(ZweaveError, match=re.escape(f"the files in {tmp_path} name none")):
        FormatCompiler(Tokenizer(tmp_path), 264)


def test_without_the_package(byte_level, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ZweaveError, match=r"pip install 'zweave\[structured\]'"):
        FormatCompiler(byte_level, 264)
