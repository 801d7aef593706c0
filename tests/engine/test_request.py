import math

import pytest

from zweave import Request, Sampling, ZweaveError


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": 10**400},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 0.5},
        {"repetition_penalty": 0},
        {"repetition_penalty": math.inf},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"frequency_penalty": "much"},
        {"logit_bias": [1, 2]},
        {"logit_bias": {1.5: 1}},
        {"logit_bias": {"one": 1}},
        {"logit_bias": {1: 100.5}},
        {"logit_bias": {1: None}},
    ],
    ids=str,
)
def test_absurd_sampling_is_refused(fields: dict) -> None:
    with pytest.raises(ZweaveError, match=next(iter(fields))):
        Sampling(**fields)


@pytest.mark.parametrize(
    ("args", "fields", "message"),
    [
        ((), {}, "a prompt or messages"),
        (("hello",), {"messages": [{"role": "user", "content": "hello"}]}, "a prompt or messages"),
        (("",), {}, "empty"),
        (([],), {}, "empty"),
        ((), {"messages": []}, "empty"),
        (("hello",), {"max_tokens": 0}, "max_tokens"),
        (("hello",), {"max_tokens": 2.0}, "max_tokens"),
        (("hello",), {"stop": ""}, "stop"),
        (("hello",), {"stop": ["a", ""]}, "stop"),
        (("hello",), {"stop": [1]}, "stop"),
        (("hello",), {"stop": 5}, "stop"),
        (("hello",), {"escape_special": None}, "escape_special"),
        (("hello",), {"add_special_tokens": 1}, "add_special_tokens"),
        (("hello",), {"stop_token_ids": 5}, "stop_token_ids"),
        (("hello",), {"stop_token_ids": "5"}, "stop_token_ids"),
        (("hello",), {"expert": 5}, "expert"),
        (("hello",), {"expert": {"a": 10**400}}, "finite"),
        ((b"hello",), {}, "prompt"),
        (("hello",), {"sampling": {"temperature": 1}}, "sampling"),
        (("hello",), {"logprobs": -1}, "logprobs"),
        (("hello",), {"logprobs": 101}, "logprobs"),
        (("hello",), {"ignore_eos": 1}, "ignore_eos"),
        ((5,), {}, "prompt"),
        ((), {"messages": "hello"}, "messages"),
    ],
    ids=str,
)
def test_bad_request_is_refused(args: tuple, fields: dict, message: str) -> None:
    with pytest.raises(ZweaveError, match=message):
        Request(*args, **fields)


def test_one_stop_string_is_not_read_as_letters() -> None:
    assert Request("hello", stop="end").stop_strings == ("end",)
    assert Request("hello", stop=["a", "b"]).stop_strings == ("a", "b")
