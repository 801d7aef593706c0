"""No body, however malformed, ends in a fault of the server."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from zweave.server.app import create_app

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer admin"}
KEYS = st.one_of(
    st.text(max_size=3),
    st.sampled_from(
        ["3", "9" * 5000, "\ud800", "a\nb", "a", "role", "content", "type", "regex", "id", "schema"]
    ),
)
# What a field's own type hardly allows, or only just.
JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 600),
        st.floats(),
        st.text(max_size=4),
        st.sampled_from(
            [
                10**19,
                -(10**400),
                10**4000,
                5e-324,
                1e308,
                "",
                "\0",
                "\ud800",
                "a\nb",
                "../a",
                "/etc/passwd",
                "a:1e38",
            ]
        ),
        st.sampled_from(
            ["a" * 255, "9" * 5000, "(a{1,999}){1,999}", "<|im_end|>", "broken", "loop", "a", "auto"]
        ),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)
DEEP = st.builds(
    lambda levels, around: (around[0] * levels, around[1] * levels),
    st.sampled_from([50, 300, *range(900, 1000, 7), 5000]),
    st.sampled_from([("[", "]"), ('{"a":', "}")]),
)
# Where a body of some fields is a good one to begin with.
STARTS = {
    "/v1/completions": {"model": "a", "prompt": "x", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [3]},
    "/v1/load_lora_adapter": {"lora_name": "new", "lora_path": "new"},
    "/v1/unload_lora_adapter": {"lora_name": "new"},
    "/v1/requests/{response_id}/rescale": {"model": "a"},
}


def values(schema: dict[str, Any], components: dict[str, Any]) -> st.SearchStrategy:
    """What a part of the API's own description allows, as far as types go."""
    if "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return st.one_of([values(one, components) for one in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "array":
        return st.lists(values(schema["items"], components), max_size=3)
    if kind == "object":
        fields = {name: values(one, components) for name, one in schema.get("properties", {}).items()}
        return st.fixed_dictionaries({}, optional=fields) if fields else st.dictionaries(KEYS, JUNK)
    simple = {
        "integer": st.one_of(st.integers(0, 5), st.integers()),
        "number": st.one_of(st.floats(0, 1), st.floats()),
        "string": st.one_of(st.sampled_from(["a", "user", "x y"]), st.text(max_size=9)),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return simple.get(kind, JUNK)


def bodies(document: dict[str, Any], path: str) -> st.SearchStrategy:
    """A good body, with some fields of their own type and up to two that are anything."""
    components = document["components"]["schemas"]
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = components[schema["$ref"].rpartition("/")[2]]["properties"]
    some = st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: values(fields[name], components) for name in names})
    )
    wrong = st.dictionaries(st.sampled_from([*sorted(fields), "salt", "a\nb", "k" * 2000]), JUNK, max_size=2)
    return st.builds(lambda own, other: STARTS[path] | own | other, some, wrong)


def test_any_body_gets_an_answer_or_one_line(attacked: Any, check_answer: Callable[[int, str], None]) -> None:
    document = create_app(attacked.engine, attacked.settings).openapi()
    by_path = {path: bodies(document, path) for path in STARTS}
    described = {path for path, calls in document["paths"].items() if "requestBody" in calls.get("post", {})}
    assert described == {*STARTS}, "a new endpoint wants a line in STARTS"
    http = attacked.http(headers=HEADERS)

    @given(st.sampled_from(sorted(STARTS)).flatmap(lambda path: st.tuples(st.just(path), by_path[path])))
    @settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    def ask(path_and_body: tuple[str, dict]) -> None:
        path, body = path_and_body
        answer = http.post(path, content=json.dumps(body))
        event(f"{path} {answer.status_code}")
        check_answer(answer.status_code, answer.text)

    ask()


def test_bytes_that_are_nearly_a_body(attacked: Any, check_answer: Callable[[int, str], None]) -> None:
    """Cut off, with other bytes in it, keys twice, or a part that is nested deep."""
    http = attacked.http(headers=HEADERS)

    @given(
        st.sampled_from(sorted(STARTS)),
        st.tuples(st.floats(0, 1), st.floats(0, 1)),
        st.one_of(st.binary(max_size=4), st.sampled_from([b'{"a":1,"a":2}', b"NaN", b"-Infinity", b"1e999", b","])),
        st.one_of(st.none(), DEEP),
        st.sampled_from(["application/json", "text/plain", "application/x-www-form-urlencoded", "a/b;;", ""]),
    )  # fmt: skip
    def ask(path: str, cut: tuple[float, float], instead: bytes, deep: Any, kind: str) -> None:
        content = json.dumps(STARTS[path]).encode()
        if deep is not None:
            instead = f"{deep[0]}{deep[1] if cut[0] < 0.8 else ''}".encode()
        begin, end = sorted(int(place * len(content)) for place in cut)
        content = content[:begin] + instead + content[end:]
        answer = http.post(path, content=content, headers={"Content-Type": kind})
        event(f"{path} {answer.status_code}")
        check_answer(answer.status_code, answer.text)

    ask()


def test_parts_that_are_nested_deep(attacked: Any, check_answer: Callable[[int, str], None]) -> None:
    http = attacked.http(headers=HEADERS)
    chat = json.dumps(STARTS["/v1/chat/completions"])[:-1]
    for field in ("tools", "chat_template_kwargs", "metadata", "response_format", "logit_bias", "expert"):
        for levels in (60, 200, 500, *range(880, 1000, 5), 50_000):
            part = '{"json_schema":' * levels + "1" + "}" * levels
            answer = http.post(
                "/v1/chat/completions",
                content=f'{chat}, "{field}": {f"[{part}]" if field == "tools" else part}}}',
            )
            check_answer(answer.status_code, answer.text)
