"""Which tokens end an answer, from the files of a model."""

import json
import shutil

import pytest

from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.text import Tokenizer

ENDS = "{%% for m in messages %%}<|im_start|>{{ m.content }}%s{%% endfor %%}"


@pytest.fixture
def end_tokens(tiny_model, tmp_path):
    """`end_tokens(generation_config, config, **tokenizer_config)`: the end tokens of a model with these files."""

    def read(generation_config=None, config=None, **tokenizer_config):
        shutil.copy(tiny_model("llama") / "tokenizer.json", tmp_path)
        contents = {
            "generation_config.json": generation_config,
            "config.json": config,
            "tokenizer_config.json": tokenizer_config,
        }
        for name, content in contents.items():
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content))
        return Tokenizer(tmp_path).eos_ids

    return read


def test_generation_config_goes_before_config(end_tokens):
    assert end_tokens() == ()
    assert end_tokens(config={"eos_token_id": 5}) == (5,)
    assert end_tokens({}, {"eos_token_id": 5}) == (5,)
    assert end_tokens({"eos_token_id": [7, 8, 7]}, {"eos_token_id": 5}) == (7, 8)


def test_the_tokenizer_s_end_token_ends_too(end_tokens):
    assert end_tokens({"eos_token_id": 0}, eos_token="<|im_end|>") == (0, 2)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (ENDS % "<|im_end|>\n", (2, 0)),
        (ENDS % " <|im_end|>", (2, 0)),
        (ENDS % "{{ eos_token }}", (0,)),
        (ENDS % "\nUser: <|im_end|>", (0,)),
        (ENDS % "", (0,)),
        ("{{ raise_exception('no') }}", (0,)),
        (None, (0,)),
    ],
    ids=["token", "space", "named", "words", "nothing", "refused", "no template"],
)
def test_what_closes_a_turn_of_the_template_ends_an_answer(end_tokens, template, expected):
    assert end_tokens({"eos_token_id": 0}, eos_token="<|endoftext|>", chat_template=template) == expected


def test_end_tokens_outside_the_vocabulary_are_ignored(end_tokens, caplog):
    assert end_tokens({"eos_token_id": [2, -1]}, {"vocab_size": 259}) == (2,)
    assert not caplog.messages
    assert end_tokens({"eos_token_id": [2, 259]}, {"vocab_size": 259}) == (2,)
    assert "end tokens [259] are outside the vocabulary of 259 tokens" in caplog.text


def test_a_model_with_an_end_token_outside_its_vocabulary_loads(tiny_model, tmp_path):
    shutil.copytree(tiny_model("llama"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 100000}')
    assert Engine(tmp_path, dtype="float32", kv_tokens=64).tokenizer.eos_ids == (2,)


@pytest.mark.parametrize("value", ["2", [2, None], 2.5, True])
def test_malformed_end_tokens_are_refused(end_tokens, value):
    with pytest.raises(ZweaveError, match="eos_token_id must be"):
        end_tokens({"eos_token_id": value})
