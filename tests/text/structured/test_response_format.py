"""The form of an answer, as a caller writes it."""

import json

import pytest

from zweave.errors import ZweaveError
from zweave.text.structured import ResponseFormat

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, ResponseFormat(json_object=True)),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
            ResponseFormat(json_schema=SCHEMA),
        ),
        ({"json_schema": SCHEMA}, ResponseFormat(json_schema=SCHEMA)),
        ({"regex": "a+"}, ResponseFormat(regex="a+")),
        ({"choice": ["a", "b"]}, ResponseFormat(choice=["a", "b"])),
        ({"grammar": 'start: "a"'}, ResponseFormat(grammar='start: "a"')),
        (ResponseFormat(regex="a"), ResponseFormat(regex="a")),
    ],
)
def test_parse(value, expected):
    assert ResponseFormat.parse(value) == expected


def test_a_schema_is_a_dict_or_its_text():
    assert ResponseFormat(json_schema=json.dumps(SCHEMA)).source == ResponseFormat(json_schema=SCHEMA).source


def nested(levels):
    schema = {"type": "integer"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def circular():
    schema = {}
    schema["items"] = schema
    return schema


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("json", "response_format must be a zweave.ResponseFormat or an object"),
        ({}, "exactly one of json_schema, regex, choice, grammar, json_object, not none"),
        ({"regex": "a", "choice": ["a"]}, "exactly one .* not regex and choice"),
        ({"pattern": "a"}, "unknown field of response_format 'pattern'"),
        ({"type": "xml"}, "type must be text, json_object or json_schema, not 'xml'"),
        ({"type": "json_schema"}, "needs"),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, "needs"),
        ({"json_object": 1}, "json_object must be True or False"),
        ({"regex": ""}, "regex must be a non-empty text"),
        ({"grammar": 7}, "grammar must be a non-empty text"),
        ({"choice": []}, "choice must be"),
        ({"choice": "ab"}, "choice must be"),
        ({"choice": ["a", ""]}, "choice must be"),
        ({"choice": ["\ud800"]}, "lone surrogate"),
        ({"regex": "a" * 100_001}, "has 100001 characters"),
        ({"json_schema": 7}, "json_schema must be a JSON object or its text"),
        ({"json_schema": "[]"}, "json_schema must be a JSON object or its text"),
        ({"json_schema": "{"}, "json_schema is no JSON"),
        ({"json_schema": {"enum": [float("nan")]}}, "json_schema is no JSON"),
        ({"json_schema": {"enum": [{1}]}}, "json_schema is no JSON"),
        ({"json_schema": '{"a": 1, "a": 2}'}, "stands twice"),
        ({"json_schema": nested(64)}, "nested more than 64 levels deep"),
        ({"json_schema": "[" * 100_000}, "nested too deeply"),
        ({"json_schema": circular()}, "nested more than 64 levels deep"),
    ],
)
def test_refused(value, message):
    with pytest.raises(ZweaveError, match=message):
        ResponseFormat.parse(value)


def test_the_deepest_schema():
    assert ResponseFormat(json_schema=nested(63)).source == json.dumps(nested(63))
