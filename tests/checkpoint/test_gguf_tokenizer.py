"""Tokenizers from GGUF metadata: byte-level BPE by its pre-tokenizer, SentencePiece by its definition."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from zweave.checkpoint.gguf.tokenizer import GgufTokenizer
from zweave.errors import ZweaveError
from zweave.text import Tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = [*SPECIAL, *sorted(ByteLevel.alphabet()), "Ġa", "12", "he", "Ġhe", "<tool>"]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["he", "Ġhe", "Ġ", "1", "2", "3"]),
        ("gpt-2", ["he", "Ġhe", "Ġ", "12", "3"]),
        ("llama-bpe", ["<|im_start|>", "he", "Ġhe", "Ġ", "12", "3"]),
        ("qwen2", ["he", "Ġhe", "Ġ", "1", "2", "3"]),
    ],
)
def test_pre_tokenizers(pre, expected):
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ALPHABET,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * 260 + [4],
        "tokenizer.ggml.merges": ["Ġ a", "1 2", "h e", "Ġ he"],
        "tokenizer.ggml.bos_token_id": 1,
    }
    assert GgufTokenizer(metadata).build().encode("he he 123").tokens == expected


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
        ({"tokenizer.ggml.bos_token_id": 10**6}, "bos token 1000000 is not in its vocabulary"),
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
                "tokenizer.ggml.pre": "tekken",
            },
            "tekken",
        ),
    ],
)
def test_tokenizers_that_are_refused(change, message):
    with pytest.raises(ZweaveError, match=message):
        GgufTokenizer(_sentencepiece_metadata() | change).build()
