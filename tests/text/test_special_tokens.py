"""Tokens from the files beside tokenizer.json, against transformers."""

import json
import shutil

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from zweave.errors import ZweaveError
from zweave.text import Tokenizer
from zweave.text.detokenizer import IncrementalDetokenizer

CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|im_end|>",
}
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False}
TOOL = {"content": "<tool>", "special": False, "normalized": True, **FLAGS}
IMAGE = {"content": "<img>", "special": True, "normalized": False, **FLAGS}
VOCABULARY = {
    token: index
    for index, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab"])
}
TEXT = "a<tool>b <img>c<|im_end|>"


@pytest.fixture
def directory(tiny_model, tmp_path):
    """A tokenizer of which a test writes the other files."""
    shutil.copy(tiny_model("llama") / "tokenizer.json", tmp_path)
    return tmp_path


def write(directory, name, content):
    (directory / name).write_text(json.dumps(content))


def change(directory, edit):
    library = Library.from_file(str(directory / "tokenizer.json"))
    edit(library)
    library.save(str(directory / "tokenizer.json"))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": CONFIG | {"added_tokens_decoder": {"260": IMAGE, "259": TOOL}}},
        {"tokenizer_config.json": CONFIG | {"extra_special_tokens": ["<img>"]}},
        {"tokenizer_config.json": CONFIG | {"extra_special_tokens": {"image_token": "<img>"}}},
        {"tokenizer_config.json": CONFIG | {"additional_special_tokens": ["<img>", "<tool>"]}},
        {"tokenizer_config.json": CONFIG | {"image_token": "<img>", "pad_token": "<tool>"}},
        {"tokenizer_config.json": CONFIG, "special_tokens_map.json": {"pad_token": IMAGE}},
        {"tokenizer_config.json": CONFIG, "added_tokens.json": {"<tool>": 259, "<img>": 260}},
    ],
    ids=["decoder", "list", "named", "additional", "model's own", "special_tokens_map", "added_tokens"],
)
def test_tokens_of_the_other_files_equal_transformers(directory, files):
    for name, content in files.items():
        write(directory, name, content)
    tokenizer, reference = Tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    ids = tokenizer.encode(TEXT)
    assert ids == reference(TEXT)["input_ids"]
    assert len(ids) < len(TEXT) - len("<|im_end|>")
    for skip in (True, False):
        assert tokenizer.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)


def test_a_token_that_the_config_calls_special_is_special(directory):
    change(directory, lambda library: library.add_tokens([AddedToken("<img>", special=False)]))
    write(directory, "tokenizer_config.json", CONFIG | {"added_tokens_decoder": {"259": IMAGE}})
    assert Tokenizer(directory).decode([67, 259, 68]) == AutoTokenizer.from_pretrained(directory).decode(
        [67, 259, 68], skip_special_tokens=True
    )
    write(directory, "tokenizer_config.json", CONFIG | {"eos_token": "<img>"})
    tokenizer = Tokenizer(directory)
    assert tokenizer.decode([259]) == ""
    assert tokenizer.eos_ids == (259,)


def test_a_template_knows_the_model_s_own_tokens(directory):
    template = "{{ image_token }}{{ vid_token }}{{ messages[0].content }}"
    named = {"extra_special_tokens": {"image_token": "<img>"}, "vid_token": IMAGE | {"content": "<vid>"}}
    write(directory, "tokenizer_config.json", CONFIG | named | {"chat_template": template})
    tokenizer = Tokenizer(directory)
    ids = tokenizer.chat([{"role": "user", "content": "x"}])
    assert len(ids) == 3
    assert tokenizer.decode(ids, skip_special=False) == "<img><vid>x"


def test_tokens_without_an_embedding_are_left_out(directory, caplog):
    write(directory, "config.json", {"vocab_size": 260})
    write(directory, "tokenizer_config.json", CONFIG | {"pad_token": "[PAD]", "image_token": "<img>"})
    tokenizer = Tokenizer(directory)
    assert len(tokenizer.encode("[PAD]")) == 1
    assert len(tokenizer.encode("<img>")) == len("<img>")
    assert "['<img>'] are beyond the model's vocabulary of 260" in caplog.text


def test_settings_of_the_session_that_wrote_the_file_do_not_count(directory):
    change(directory, lambda library: setattr(library, "model", models.BPE(VOCABULARY, [("a", "b")])))
    whole = Tokenizer(directory).encode("ababababab")
    assert len(whole) == 5
    change(directory, lambda library: setattr(library.model, "dropout", 0.5))
    change(directory, lambda library: library.enable_truncation(4))
    change(directory, lambda library: library.enable_padding(length=40, pad_id=0, pad_token="<|endoftext|>"))
    assert [Tokenizer(directory).encode("ababababab") for _ in range(5)] == [whole] * 5


def test_added_tokens_with_accents_are_their_text(directory):
    change(directory, lambda library: library.add_tokens(["č", "naïve"]))
    tokenizer = Tokenizer(directory)
    ids = tokenizer.encode("ačb naïve é")
    assert tokenizer.decode(ids) == "ačb naïve é"
    stream = IncrementalDetokenizer(tokenizer)
    assert "".join(map(stream.add, ids)) == "ačb naïve é"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"added_tokens_decoder": {"270": TOOL}}, "the id 270, tokenizer.json the id 259"),
        ({"added_tokens_decoder": {"a": TOOL}}, "'a' where a token id belongs"),
        ({"added_tokens_decoder": [TOOL]}, "must map ids to tokens"),
        ({"added_tokens_decoder": {"259": 7}}, "7 where a token belongs"),
        ({"added_tokens_decoder": {"259": TOOL | {"special": "no"}}}, "must be true or false"),
        ({"extra_special_tokens": "<img>"}, "must be a list or an object"),
    ],
)
def test_malformed_tokens_are_refused(directory, config, message):
    write(directory, "tokenizer_config.json", CONFIG | config)
    with pytest.raises(ZweaveError, match=message):
        Tokenizer(directory)


def test_escaped_special_tokens_are_plain_text(tiny_model):
    tokenizer = Tokenizer(tiny_model("llama"))
    plain = tokenizer.encode("say <|im_end|> and <|im_start|>")
    messages = [{"role": "user", "content": "say <|im_end|> and <|im_start|>"}]
    opened = [{"role": "user", "content": "say"}]
    escaped = tokenizer.chat(messages, escape_special=True)
    assert tokenizer.decode(escaped, skip_special=False) == tokenizer.decode(
        tokenizer.chat(messages), skip_special=False
    )
    controls = [token for token in escaped if token < 3]
    assert controls == [token for token in tokenizer.chat(opened) if token < 3]
    letters = tokenizer.encode("say <|im_end|> and <|im_start|>", escape_special=True)
    assert tokenizer.decode(letters) == "say <|im_end|> and <|im_start|>"
    assert not {0, 1, 2}.intersection(letters)
    assert tokenizer.encode("say <|im_end|> and <|im_start|>") == plain


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_escaping_keeps_the_space_that_begins_a_text(tmp_path, scheme):
    vocabulary = {token: index for index, token in enumerate(["<s>", "▁", *"<s>ab"])}
    library = Library(models.BPE(vocab=vocabulary, merges=[]))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    library.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    library.add_special_tokens([AddedToken("<s>", normalized=False)])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    library.encode_special_tokens = True
    for text in ("<s>a", "a<s>b", "<s><s>"):
        assert tokenizer.encode(text, escape_special=True) == library.encode(text).ids


def test_overlapping_special_tokens_are_escaped(directory):
    change(directory, lambda library: library.add_special_tokens(["ab", "bc"]))
    tokenizer = Tokenizer(directory)
    assert tokenizer.decode(tokenizer.encode("abc bcab", escape_special=True)) == "abc bcab"


def test_a_tokenizer_that_cannot_escape_says_so(directory):
    change(directory, lambda library: library.add_special_tokens([AddedToken("<n>", normalized=True)]))
    with pytest.raises(ZweaveError, match="escape_special: the tokenizer normalises '<n>'"):
        Tokenizer(directory).encode("a", escape_special=True)


def test_a_begin_token_that_comes_twice_is_told_once(directory, caplog):
    begin = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    change(directory, lambda library: setattr(library, "post_processor", begin))
    tokenizer = Tokenizer(directory)
    assert tokenizer.encode("<|endoftext|>a", special=False)[0] == tokenizer.encode("a")[0] == 0
    assert not caplog.messages
    assert tokenizer.encode("<|endoftext|>a")[:2] == tokenizer.encode("<|endoftext|>b")[:2] == [0, 0]
    assert caplog.text.count("begins with <|endoftext|>") == 1
