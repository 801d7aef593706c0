"""Sampled answers of a model that knows nothing have the form that was asked for."""

import json
import random
import re
import shutil
from dataclasses import replace

import pytest
import torch

from zweave import Engine, Request, Sampling, ZweaveError
from zweave.dispatch import FixedDispatcher
from zweave.experts import Expert
from zweave.text import PromptTemplate

PROMPT = "Answer in JSON."


@pytest.fixture(scope="module")
def make(tiny_model):
    """Engines of a random model with a token for every byte."""

    def make_engine(**options):
        return Engine(tiny_model("llama"), dtype="float32", **{"kv_tokens": 8192, **options})

    return make_engine


@pytest.fixture(scope="module")
def engine(make):
    return make()


def ask(response_format, seed=0, max_tokens=400, **fields):
    sampling = Sampling(temperature=1.0, seed=seed)
    return Request(
        PROMPT, response_format=response_format, max_tokens=max_tokens, sampling=sampling, **fields
    )


def random_schema(rng, depth=2):
    """A schema whose values are short, and the definitions that it refers to."""
    kinds = ["integer", "number", "string", "pattern", "enum", "const", "boolean", "null"]
    kind = rng.choice(kinds + ["object", "object", "array", "tuple", "anyOf", "$ref"] * (depth > 0))
    low, high = sorted(rng.sample(range(-500, 500), 2))
    if kind == "integer":
        return rng.choice([{"minimum": low}, {"exclusiveMinimum": low}]) | {"type": kind, "maximum": high}
    if kind == "number":
        # llguidance 1.9 lets an excluded bound pass if the other one is less than 1 away.
        high = max(high, low + 4)
        return {"type": kind, "minimum": low / 4, "exclusiveMaximum": high / 4}
    if kind == "string":
        least = rng.randrange(4)
        return {"type": kind, "minLength": least, "maxLength": least + rng.randrange(5)}
    if kind == "pattern":
        return {
            "type": "string",
            "pattern": rng.choice(["^[a-c]{2,4}$", "^[0-9]{3}-[0-9]{2}$", "^(yes|no)$"]),
        }
    if kind == "enum":
        return {"enum": rng.sample(["red", "grün", 'a "b"', 7, -1.5, None, True, ["x", 1], {"k": "v"}], 3)}
    if kind == "const":
        return {"const": rng.choice(["fixed", 0, False, [1, [2]], {"a": {"b": None}}])}
    if kind == "object":
        names = rng.sample(["a", "id", "long name", "ü", 'quo"te'], rng.randrange(1, 4))
        return {
            "type": "object",
            "properties": {name: random_schema(rng, depth - 1) for name in names},
            "required": rng.sample(names, rng.randrange(len(names) + 1)),
            "additionalProperties": False,
        }
    if kind == "array":
        least = rng.randrange(3)
        bounds = {"minItems": least, "maxItems": least + rng.randrange(3)}
        return {"type": "array", "items": random_schema(rng, depth - 1), **bounds}
    if kind == "tuple":
        prefix = [random_schema(rng, depth - 1) for _ in range(2)]
        return {"type": "array", "prefixItems": prefix, "items": False, "minItems": 2}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth - 1), random_schema(rng, depth - 1)]}
    if kind == "$ref":
        return {"$ref": f"#/$defs/{rng.choice(['word', 'pair'])}"}
    return {"type": kind}


def with_definitions(schema):
    word = {"type": "string", "pattern": "^[a-z]{1,5}$"}
    pair = {"type": "array", "items": {"$ref": "#/$defs/word"}, "minItems": 2, "maxItems": 2}
    return schema | {"$defs": {"word": word, "pair": pair}}


TYPES = {"integer": int, "number": int | float, "string": str, "boolean": bool, "object": dict, "array": list}


def same(one, other):
    """JSON's equality: True is not 1."""
    return json.dumps(one) == json.dumps(other)


def is_valid(value, schema, root):
    """JSON Schema's rules as far as `random_schema` uses them, written down once more."""
    if "$ref" in schema:
        return is_valid(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return any(is_valid(value, one, root) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return any(same(value, one) for one in schema.get("enum", [schema.get("const")]))
    kind = schema["type"]
    if kind == "null":
        return value is None
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return False
    if kind in ("integer", "number"):
        lower = value >= schema.get("minimum", value) and value > schema.get("exclusiveMinimum", value - 1)
        return (
            lower
            and value <= schema.get("maximum", value)
            and value < schema.get("exclusiveMaximum", value + 1)
        )
    if kind == "string":
        long = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        return long and re.search(schema.get("pattern", ""), value) is not None
    if kind == "array":
        prefix = schema.get("prefixItems", [])
        rest = [] if schema["items"] is False else [schema["items"]] * (len(value) - len(prefix))
        long = schema["minItems"] <= len(value) <= schema.get("maxItems", len(prefix) + len(rest))
        items = [*prefix, *rest]
        return long and len(items) == len(value) and all(map(is_valid, value, items, [root] * len(items)))
    if kind == "object":
        properties = schema["properties"]
        return {*schema["required"]} <= {*value} <= {*properties} and all(
            is_valid(one, properties[name], root) for name, one in value.items()
        )
    return kind == "boolean"


def check_random_schemas(engine, seeds):
    schemas = [with_definitions(random_schema(random.Random(seed))) for seed in seeds]
    results = engine.generate(
        [ask({"json_schema": one}, seed) for seed, one in zip(seeds, schemas, strict=True)]
    )
    complete = 0
    for seed, schema, result in zip(seeds, schemas, results, strict=True):
        if result.finish_reason == "stop":
            complete += 1
            value = json.loads(result.text)
            assert is_valid(value, schema, schema), f"seed {seed}: {result.text} is not of {schema}"
        else:
            # The digits of a number may go on for ever.
            assert result.finish_reason == "length" and '"number"' in json.dumps(schema), f"seed {seed}"
    assert complete > 0.95 * len(seeds)


def test_random_schemas(engine):
    check_random_schemas(engine, range(40))


@pytest.mark.slow
def test_a_thousand_random_schemas(engine):
    check_random_schemas(engine, range(1000, 2000))


@pytest.mark.parametrize(
    "pattern",
    [
        "[a-z]{3,8}@[a-z]{2,5}\\.(com|org)",
        "(0|[1-9][0-9]{0,3})\\.[0-9]{2}",
        "[0-9]{4}-[0-9]{2}|n/a",
        "[^a-y]{1,6}",
    ],
)
def test_regex(engine, pattern):
    results = engine.generate([ask({"regex": pattern}, seed) for seed in range(3)])
    assert [r.text for r in results if not re.fullmatch(pattern, r.text)] == []
    assert {result.finish_reason for result in results} == {"stop"}
    assert len({result.text for result in results}) > 1


def test_choice(engine):
    choices = ["yes", "no", "yes, but", "日本 🙂"]
    results = engine.generate([ask({"choice": choices}, seed) for seed in range(12)])
    assert {result.text for result in results} <= {*choices} and len({result.text for result in results}) > 1
    assert all(result.token_ids[-1] in engine.tokenizer.eos_ids for result in results)


def test_grammar(engine):
    grammar = 'start: sum\nsum: term ("+" term){0,3}\nterm: /[1-9][0-9]?/ | "(" /[1-9]/ "*" /[1-9]/ ")"'
    results = engine.generate([ask({"grammar": grammar}, seed) for seed in range(6)])
    assert all(eval(result.text) > 0 for result in results)


def test_greedy_answers_and_log_probabilities(engine):
    letters = engine.tokenizer.encode("lr")
    request = Request(PROMPT, response_format={"choice": ["left", "right"]}, logprobs=5, score=letters)
    (result,) = engine.generate(request)
    (free,) = engine.generate(Request(PROMPT, max_tokens=1, logprobs=5, score=letters))
    likelier = letters[free.scores.index(max(free.scores))]
    assert result.token_ids[0] == likelier and result.text in ("left", "right")
    # Log-probabilities are the model's own, whatever the format excludes.
    assert result.scores == free.scores and result.logprobs[0].top == free.logprobs[0].top
    assert result.logprobs[0].logprob == max(free.scores)


def test_max_tokens_and_stop_strings_cut_an_answer(engine):
    cut, stopped = engine.generate([ask({"regex": "a{50}"}, max_tokens=5), ask({"regex": "abcd"}, stop="c")])
    assert (cut.text, cut.finish_reason) == ("aaaaa", "length")
    assert (stopped.text, stopped.finish_reason) == ("ab", "stop")


def test_an_answer_follows_from_its_seed(make, engine):
    schema = with_definitions(
        {"type": "array", "items": {"$ref": "#/$defs/pair"}, "minItems": 3, "maxItems": 4}
    )
    requests = [ask({"json_schema": schema}, seed, max_tokens=70) for seed in range(4)]
    wanted = engine.generate(requests)
    assert [engine.generate(request)[0] for request in requests] == wanted
    cramped = make(kv_tokens=120, block_size=4)
    assert cramped.generate(requests) == wanted and cramped.stats().preemptions > 0
    on_gpu = make(device="reference").generate(requests[:2])
    assert [result.token_ids for result in on_gpu] == [result.token_ids for result in wanted[:2]]


def test_a_dispatched_request_keeps_its_format(engine):
    request = ask({"choice": ["left", "right"]}, expert="auto", dispatcher=FixedDispatcher(None))
    (result,) = engine.generate(request)
    assert result.text in ("left", "right") and result.finish_reason == "stop"


def test_what_cannot_be_compiled_is_refused_before_anything_runs(engine):
    bad = ask({"regex": "a("})
    with pytest.raises(ZweaveError, match="request 1: response_format: the regex is refused"):
        engine.generate([ask({"regex": "a"}), bad])
    assert not engine.has_work
    results = engine.generate([bad, ask({"regex": "ab"})], on_error="result")
    assert results[0].finish_reason == "error" and "unclosed group" in results[0].error
    assert results[1].text == "ab"


def test_ignore_eos_is_refused():
    with pytest.raises(ZweaveError, match="leave ignore_eos out"):
        ask({"regex": "a"}, ignore_eos=True)


def test_a_plain_text_is_no_format():
    assert ask({"type": "text"}) == ask(None)


def test_tools_go_into_the_prompt(make, tiny_model, tmp_path):
    """And a message with tools is no bare text for an expert's own words."""
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{{ tools | tojson }}{{ greeting }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    engine = Engine(tmp_path / "model", dtype="float32", kv_tokens=512)
    expert = Expert(
        z={"model.layers.0.self_attn.q_proj": torch.ones(32)}, prompt_template=PromptTemplate("Say {text}")
    )
    engine.load_expert("own", expert)
    request = Request(
        messages=[{"role": "user", "content": "hi"}],
        tools=[{"name": "f"}],
        chat_template_kwargs={"greeting": "Hello "},
        expert="own",
        max_tokens=2,
    )
    (result,) = engine.generate(request)
    assert result.prompt_tokens == len('[{"name": "f"}]Hello hi') and result.asked is None
    (result,) = engine.generate(replace(request, tools=None))
    assert result.asked is not None and "Say hi" in result.asked


def test_each_of_several_answers_has_the_form(engine):
    result = engine.generate(ask({"regex": "[0-9]{3}"}, n=4))[0]
    assert len(result.samples) == 4
    assert all(re.fullmatch("[0-9]{3}", sample.text) for sample in result.samples)
