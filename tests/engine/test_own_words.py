"""Bare texts are put into the words that their expert was trained on; everything else is taken as it is."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from zweave import Engine, Request, ZweaveError
from zweave.text import PromptTemplate
from zweave.text.chatml import chat

FILM = PromptTemplate("Film: {text}\nGood?", "It is", ("a", "b"), 1)
SUM = PromptTemplate("What is {text}?", "{text} =", max_tokens=4, stop=("q",))


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue("tiny_engine")()


@pytest.fixture
def films(engine: Engine) -> Iterator[Engine]:
    """The experts "film" and "sum" with words of their own, beside "a" and "b" without."""
    for name, template in (("film", FILM), ("sum", SUM), ("late-film", FILM)):
        source = {"film": "a", "sum": "b", "late-film": "late"}[name]
        engine.load_expert(name, replace(engine.bank.registered(source).read(), prompt_template=template))
    yield engine


def same(engine: Engine, asked: Request, whole: Request) -> None:
    result, expected = engine.generate([asked, whole])
    assert result.asked is not None and expected.asked is None
    kept = {"asked": None, "label": None, "expert": expected.expert}
    assert replace(result, **kept) == expected


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("form", [Request, lambda text, **rest: Request(messages=user(text), **rest)])
def test_a_bare_text_is_the_whole_prompt_of_the_training(films: Engine, form: Callable) -> None:
    whole = chat("Film: dull\nGood?", "It is")
    same(films, form("dull", expert="film"), Request(whole, expert="film", max_tokens=1))
    same(films, form("Film: dull", expert="film"), Request(whole, expert="film", max_tokens=1))
    mixed = {"film": 0.5, "late-film": 0.5}
    same(films, form("dull", expert=mixed), Request(whole, expert=mixed, max_tokens=1))
    whole = chat("What is 1 + 2?", "1 + 2 =")
    same(films, form("1 + 2", expert="sum"), Request(whole, expert="sum", max_tokens=4, stop="q"))
    # What the request limits more stays limited.
    same(
        films,
        form("1 + 2", expert="sum", max_tokens=2, stop="e"),
        Request(whole, expert="sum", max_tokens=2, stop=["e", "q"]),
    )


@pytest.mark.parametrize("choice", [None, "a", {"film": 0.5, "sum": 0.5}, {"film": 1.0, "a": 1.0}])
def test_another_experts_words_are_named(films: Engine, choice: object) -> None:
    plain = Request("dull", expert=choice, max_tokens=3)
    assert films.generate(plain)[0].asked is None
    whole = chat("Film: dull\nGood?", "It is")
    same(films, replace(plain, template="film"), Request(whole, expert=choice, max_tokens=1))


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [40, 41, 42]},
        {"prompt": chat("dull", "It is")},
        {"prompt": "dull", "raw": True},
        {"messages": user("dull"), "raw": True},
        {"messages": [*user("dull"), {"role": "assistant", "content": "so"}]},
        {"messages": [{"role": "system", "content": "s"}, *user("dull")]},
    ],
    ids=["token ids", "chat markup", "raw", "raw message", "continued", "system"],
)
def test_everything_else_is_taken_as_it_is(films: Engine, fields: dict) -> None:
    request = Request(expert="film", max_tokens=3, **fields)
    # "a" is the same expert without words.
    result, expected = films.generate([request, replace(request, expert="a")])
    assert result.asked is None and result.label is None
    assert replace(result, expert="a") == expected


def test_the_label_is_told(films: Engine) -> None:
    text = films.generate(Request("dull", expert="film"))[0].text
    labels = (text, f"no {text}")
    known = replace(FILM, labels=labels)
    films.load_expert("known", replace(films.bank.registered("film").read(), prompt_template=known))
    told, other = films.generate([Request("dull", expert="known"), Request("dull", expert="film")])
    assert text.strip() and told.label == text.strip() and other.label is None
    # A whole label is a whole answer, though the limit of tokens ended it; anything else was cut off.
    assert (told.finish_reason, other.finish_reason) == ("stop", "length")
    longer = replace(known, labels=(text, f"{text} and more"))
    films.load_expert("longer", replace(films.bank.registered("film").read(), prompt_template=longer))
    assert films.generate(Request("dull", expert="longer"))[0].finish_reason == "length"


def test_an_expert_of_bare_prompts_limits_answers_and_leaves_messages_alone(films: Engine) -> None:
    bare = PromptTemplate(max_tokens=2, chat=False)
    films.load_expert("bare", replace(films.bank.registered("a").read(), prompt_template=bare))
    same(films, Request(" as is ", expert="bare"), Request(" as is ", expert="a", max_tokens=2))
    assert films.generate(Request(messages=user("x"), expert="bare", max_tokens=3))[0].asked is None


def test_what_cannot_be_asked_is_refused(films: Engine) -> None:
    for fields, words in (
        ({"template": "film", "raw": True}, "leave one of the two out"),
        ({"template": "no such"}, "cannot be an expert's name"),
        ({"raw": 1}, "raw must be True or False"),
    ):
        with pytest.raises(ZweaveError, match=words):
            Request("x", **fields)
    bare = PromptTemplate(chat=False)
    films.load_expert("bare", replace(films.bank.registered("a").read(), prompt_template=bare))
    for form, name in (([1], "film"), (chat("x"), "film")):
        with pytest.raises(ZweaveError, match=f"does not fit into the template of '{name}'"):
            films.check(Request(form, template=name))
    for messages, name in ((user("x"), "bare"), (user("x") * 2, "film")):
        with pytest.raises(ZweaveError, match=f"does not fit into the template of '{name}'"):
            films.check(Request(messages=messages, template=name))
    for name, words in (("a", "'a' has no prompt template"), ("fil", "did you mean")):
        with pytest.raises(ZweaveError, match=words):
            films.check(Request("x", template=name))


def test_the_engine_says_which_words(films: Engine) -> None:
    assert films.prompt_template("film") == FILM
    assert [films.prompt_template(choice) for choice in (None, "a", "auto")] == [None] * 3
