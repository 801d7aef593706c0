"""What of an answer its text shows: the stop, and special tokens."""

from collections.abc import Callable

import pytest

from zweave import Engine, Request, Sampling

START, END, LETTER = (
    1,
    2,
    40,
)  # <|im_start|>, which is special, <|im_end|>, which ends an answer, and a letter


@pytest.fixture(scope="module")
def engine(tiny_engine: Callable[..., Engine]) -> Engine:
    return tiny_engine()


@pytest.mark.parametrize(
    ("token", "fields", "text"),
    [
        (START, {}, ""),
        (START, {"skip_special_tokens": False}, "<|im_start|>" * 3),
        (START, {"skip_special_tokens": False, "stop": "start|><"}, "<|im_"),
        (END, {"skip_special_tokens": False}, ""),
        (END, {"include_stop_str_in_output": True}, ""),
        (END, {"include_stop_str_in_output": True, "skip_special_tokens": False}, "<|im_end|>"),
        (END, {"ignore_eos": True, "skip_special_tokens": False}, "<|im_end|>" * 3),
        (LETTER, {"stop_token_ids": [LETTER]}, ""),
        (LETTER, {"stop_token_ids": [LETTER], "include_stop_str_in_output": True}, "{}"),
        (LETTER, {"stop": "{}{}"}, ""),
        (LETTER, {"stop": "{}{}", "include_stop_str_in_output": True}, "{}{}"),
        (LETTER, {"stop": "{}{}", "min_tokens": 2}, "{}"),
        (LETTER, {"stop": "{}", "min_tokens": 2, "include_stop_str_in_output": True}, "{}{}{}"),
    ],
    ids=str,
)
def test_the_text_of_a_token_again_and_again(engine: Engine, token: int, fields: dict, text: str) -> None:
    letter = engine.tokenizer.decode([LETTER])
    assert len(letter) == 1
    fields = {k: v.replace("{}", letter) if isinstance(v, str) else v for k, v in fields.items()}
    request = Request([5, 6], max_tokens=3, sampling=Sampling(logit_bias={token: 100}), **fields)
    deltas = [*engine.stream(request)]
    assert deltas[-1].result.text == "".join(delta.text for delta in deltas) == text.replace("{}", letter)
