"""Tokenizers from GGUF metadata: byte-level BPE by its pre-tokenizer, SentencePiece by its definition."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models
from tokenizers.pre_tokenizers import ByteLevel

from zweave.checkpoint.gguf.pre_tokenizers import pre_tokenizer
from zweave.checkpoint.gguf.tokenizer import GgufTokenizer
from zweave.errors import ZweaveError
from zweave.text import Tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = [*SPECIAL, *sorted(ByteLevel.alphabet()), "Ġa", "12", "he", "Ġhe", "<tool>"]


WORDS = "I'LL say camelCase to 12345  x/y\n\n +b 日12"


def _byte_level_metadata(**change):
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ALPHABET,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * 260 + [4],
        "tokenizer.ggml.merges": ["Ġ a", "1 2", "h e", "Ġ he"],
        "tokenizer.ggml.bos_token_id": 1,
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in change.items()}


def _words(name):
    """How a pre-tokenizer cuts WORDS, joined by bars."""
    library = Library(models.BPE())
    pre_tokenizer(name).set_up(library)
    return "|".join(WORDS[start:end] for _, (start, end) in library.pre_tokenizer.pre_tokenize_str(WORDS))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("default", ""), "I|'|LL| say| camelCase| to| |123|45| | x|/|y|\n\n |+|b| 日|12"),
        (("gpt-2", "olmo", "mellum"), "I|'|LL| say| camelCase| to| 12345| | x|/|y|\n\n| +|b| 日|12"),
        (("smollm", "starcoder"), "I|'|LL| say| camelCase| to| |1|2|3|4|5| | x|/|y|\n\n| +|b| 日|1|2"),
        (
            ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx"),
            "I|'LL| say| camelCase| to| |123|45| | x|/y|\n\n| +|b| 日|12",
        ),
        (
            ("qwen2", "deepseek-r1-qwen", "megrez"),
            "I|'LL| say| camelCase| to| |1|2|3|4|5| | x|/y|\n\n| +|b| 日|1|2",
        ),
        (("tekken",), "I|'LL| say| camel|Case| to| |1|2|3|4|5| | x|/y|\n\n| +|b| 日|1|2"),
        (("deepseek-coder",), "I|'|LL| say| camelCase| to| |1|2|3|4|5| | x|/|y|\n|\n| +|b| |日|1|2"),
        (("deepseek-v3",), "I|'LL| say| camelCase| to| |123|45| | x|/y|\n\n| +|b| |日|12"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_pre_tokenizers_cut_as_in_llama_cpp(names, expected):
    assert {name: _words(name) for name in names} == dict.fromkeys(names, expected)


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["he", "Ġhe", "Ġ", "1", "2", "3"]),
        ("gpt-2", ["he", "Ġhe", "Ġ", "12", "3"]),
        ("llama3", ["<|im_start|>", "he", "Ġhe", "Ġ", "12", "3"]),
        ("smaug-bpe", ["he", "Ġhe", "Ġ", "12", "3"]),
        ("tekken", ["<|im_start|>", "he", "Ġhe", "Ġ", "1", "2", "3"]),
        ("qwen2", ["he", "Ġhe", "Ġ", "1", "2", "3"]),
    ],
)
def test_byte_level_tokens(pre, expected):
    assert GgufTokenizer(_byte_level_metadata(pre=pre)).build().encode("he he 123").tokens == expected


def test_words_that_are_tokens_stay_whole_where_llama_cpp_ignores_merges():
    tokens = [*ALPHABET[:-1], "xyz"]
    for pre, expected in (("llama-v3", ["xyz"]), ("tekken", ["xyz"]), ("dbrx", ["x", "y", "z"])):
        metadata = _byte_level_metadata(pre=pre, tokens=tokens, token_type=None, add_bos_token=False)
        del metadata["tokenizer.ggml.token_type"]
        assert GgufTokenizer(metadata).build().encode("xyz").tokens == expected


def test_a_file_without_pre_tokenizer_gets_the_default_with_a_warning(caplog):
    metadata = _byte_level_metadata()
    del metadata["tokenizer.ggml.pre"]
    GgufTokenizer(metadata).build()
    assert caplog.text.count("does not say how its tokenizer cuts words") == 1


@pytest.mark.parametrize("role", ["bos", "eos", "padding"])
@pytest.mark.parametrize("value", [2**32 - 1, -1, 10**6])
def test_a_role_outside_the_vocabulary_is_absent(caplog, role, value):
    metadata = _byte_level_metadata(bos_token_id=1, eos_token_id=2, padding_token_id=0)
    tokenizer = GgufTokenizer(
        metadata | {f"tokenizer.ggml.{role}_token_id": value, "tokenizer.ggml.pre": "llama3"}
    )
    name = {"padding": "pad"}.get(role, role)
    assert f"{name}_token" not in tokenizer.config()
    assert tokenizer.token_ids().get(f"{name}_token_id") == ([0, 2] if role == "eos" else None)
    assert tokenizer.build().encode("he").tokens == ["he"] if role == "bos" else ["<|im_start|>", "he"]
    assert bool(caplog.messages) == (value == 10**6)


def test_sentencepiece_files_without_roles_have_its_own():
    metadata = _sentencepiece_metadata()
    for role in ("bos", "eos", "unknown"):
        del metadata[f"tokenizer.ggml.{role}_token_id"]
    assert GgufTokenizer(metadata).token_ids() == GgufTokenizer(_sentencepiece_metadata()).token_ids()
    assert GgufTokenizer(metadata).build().encode("ab").tokens[0] == "<s>"


def test_end_tokens_are_known_by_their_text():
    tokens = [*ALPHABET[3:], "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    kinds = [1] * (len(tokens) - 3) + [3] * 3
    end = len(tokens) - 1
    metadata = _byte_level_metadata(tokens=tokens, token_type=kinds, eos_token_id=end - 2)
    assert GgufTokenizer(metadata).token_ids()["eos_token_id"] == [end - 2, end]


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<think>"


@pytest.mark.parametrize("kinds", [None, [1] * 265], ids=["none", "normal"])
def test_tokens_of_the_template_are_control_tokens(kinds, caplog, tmp_path):
    metadata = _byte_level_metadata(tokens=[*ALPHABET, "<think>"], token_type=kinds, eos_token_id=0)
    metadata = {key: value for key, value in metadata.items() if value is not None}
    metadata["tokenizer.chat_template"] = TEMPLATE
    gguf = GgufTokenizer(metadata)
    gguf.build().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(gguf.config()))
    tokenizer = Tokenizer(tmp_path)
    ids = tokenizer.chat([{"role": "user", "content": "<tool>"}])
    assert ids == [1, *tokenizer.encode("<tool>"), 2, 264]
    assert len(ids) == 3 + len("<tool>")
    assert tokenizer.decode(ids) == "<tool><think>"
    assert tokenizer.eos_ids == (2, 0)
    assert "<|im_start|>, <|im_end|>, <think>" in caplog.text


def test_padding_that_is_text_stays_text():
    at = ALPHABET.index("!")
    assert "pad_token" not in GgufTokenizer(_byte_level_metadata(padding_token_id=at)).config()


def _sentencepiece_metadata():
    pieces = ["▁", "a", "b", "▁a", "ab", "▁ab", "ba", "bab"]
    scores = [-20.0, -21.0, -22.0, -3.0, -1.0, -5.0, -2.0, -0.5]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _by_score(text, metadata):
    """SentencePiece's BPE by its definition: join the best neighbours, leftmost first, until none is left."""
    scores = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        joins = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not joins:
            return parts
        at = -max(joins)[1]
        parts[at : at + 2] = ["".join(parts[at : at + 2])]


@given(text=st.text("ab ", min_size=1))
def test_sentencepiece_joins_by_score(text):
    metadata = _sentencepiece_metadata()
    assert GgufTokenizer(metadata).build().encode(text).tokens == ["<s>", *_by_score(text, metadata)]


def test_sentencepiece_bytes_and_spaces(tmp_path):
    metadata = _sentencepiece_metadata()
    library = GgufTokenizer(metadata).build()
    assert library.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode(" a é</s>")) == " a é"
    bare = GgufTokenizer(
        metadata | {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    )
    assert bare.build().encode("ab").tokens == ["ab"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert' is not supported"),
        ({"tokenizer.ggml.model": 3}, "is 3"),
        ({"tokenizer.ggml.tokens": None}, "no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
        ({"tokenizer.ggml.tokens": ["a" * 2000]}, "over 1024 characters"),
        ({"tokenizer.ggml.scores": [1.0]}, "scores do not fit"),
        ({"tokenizer.ggml.token_type": [1]}, "types do not fit"),
        (
            {
                "tokenizer.ggml.tokens": ["a:b:c"],
                "tokenizer.ggml.scores": [0.0],
                "tokenizer.ggml.token_type": [1],
                "tokenizer.ggml.bos_token_id": 0,
                "tokenizer.ggml.eos_token_id": 0,
                "tokenizer.ggml.unknown_token_id": 0,
            },
            "malformed",
        ),
        ({"tokenizer.ggml.bos_token_id": "<s>"}, "bos token is '<s>', not an id"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a"], "tokenizer.ggml.pre": "smollm"},
            "pairs",
        ),
        (
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.merges": ["x y"],
                "tokenizer.ggml.pre": "smollm",
            },
            "merges",
        ),
        (
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.merges": ["a b"],
                "tokenizer.ggml.pre": "viking",
            },
            "'viking' is not supported: supported are default, gpt-2",
        ),
    ],
)
def test_tokenizers_that_are_refused(change, message):
    with pytest.raises(ZweaveError, match=message):
        GgufTokenizer(_sentencepiece_metadata() | change).build()
