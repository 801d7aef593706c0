"""Prompt templates: a text in the words of a training, read back from a file whole or refused in one line."""

import json

import pytest

from zweave.errors import ZweaveError
from zweave.tasks import prompts
from zweave.text import PromptTemplate

SUM = PromptTemplate("What is {text}?", "{text} =", max_tokens=5, stop=("\n",))
TYPE = PromptTemplate("Question: {text}\nIs it a thing or a person?", "It is a", (" thing", " person"), 1)


@pytest.mark.parametrize(
    "text", ["1 + 2", " 1 + 2\n", "What is 1 + 2?", "what is 1 + 2", "1 + 2?", "What is  1 + 2 ?"]
)
def test_own_words_are_not_written_twice(text: str) -> None:
    assert SUM.prompt(text) == prompts.addition(1, 2)


@pytest.mark.parametrize(
    "text",
    [
        "Who is it?",
        "Question: Who is it?",
        "Question: Who is it?\nIs it a thing or a person?",
        "Who is it?\nIs it a thing or a person?",
    ],
)
def test_the_words_of_one_line_or_of_all_are_left_out(text: str) -> None:
    assert TYPE.fill(TYPE.bare(text)) == (
        "Question: Who is it?\nIs it a thing or a person?",
        "It is a",
    )


@pytest.mark.parametrize("text", ["{text}", "a {text} b {user}", "\\1 {}"])
def test_a_text_is_no_template(text: str) -> None:
    assert SUM.fill(text) == (f"What is {text}?", f"{text} =")


def test_words_alone_are_a_text() -> None:
    assert TYPE.bare("Question: ") == "Question:" and SUM.bare("?") == "?"


def test_without_a_chat_the_words_are_plain_text() -> None:
    bare = PromptTemplate(labels=("a", "b"), max_tokens=1, chat=False)
    assert bare.prompt(" as it is\n") == " as it is\n" and bare.ask(" x").text == " x"
    words = PromptTemplate("Ticket: {text}\nTeam:", chat=False)
    assert words.prompt("late ") == words.prompt("Ticket: late") == "Ticket: late\nTeam:"


def test_a_part_of_the_words_is_the_text_s_own() -> None:
    words = PromptTemplate("Ticket: number {text}\nTeam:", chat=False)
    assert words.prompt("Ticket: number 8") == words.prompt("8") == "Ticket: number 8\nTeam:"
    assert words.prompt("number 8") == "Ticket: number number 8\nTeam:"


def test_labels_are_compared_but_for_white_space() -> None:
    found = [TYPE.label_of(text) for text in (" thing", "person\n", " things", "", " Thing")]
    assert found == ["thing", "person", None, None, None]
    assert SUM.label_of(" 3") is None


@pytest.mark.parametrize("template", [SUM, TYPE, PromptTemplate(), PromptTemplate(chat=False)])
def test_a_file_gives_it_back(template: PromptTemplate) -> None:
    assert PromptTemplate.from_json(template.to_json()) == template


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"version": 1, "user": "{text}", "user": "{text}!"}', "the key 'user' stands twice"),
        ("{}", "version is None, this zweave reads 1"),
        ({"version": 2}, "version is 2, this zweave reads 1"),
        ({"system": "x"}, "unknown field 'system'"),
        ({"user": "no place"}, r"must hold \{text\} once"),
        ({"user": "{text} {text}"}, r"must hold \{text\} once"),
        ({"user": 3}, r"must hold \{text\} once"),
        ({"opening": None}, "opening must be text"),
        ({"chat": "yes"}, "chat must be True or False"),
        ({"labels": "ab"}, "labels must be texts"),
        ({"labels": ["a", 1]}, "labels must be texts"),
        ({"labels": ["a", "a"]}, "two or more, all different"),
        ({"labels": ["a"]}, "two or more, all different"),
        ({"stop": [""]}, "stop must be texts"),
        ({"opening": "\ud800"}, "holds a lone surrogate"),
        ({"labels": ["a", "\udfff"]}, "holds a lone surrogate"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": True}, "max_tokens must be at least 1"),
    ],
)
def test_anything_else_is_refused_in_one_line(written: str | dict, words: str) -> None:
    text = written if isinstance(written, str) else json.dumps({"version": 1} | written)
    with pytest.raises(ZweaveError, match=words) as error:
        PromptTemplate.from_json(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
