"""What a text may be or have: the attributes that hidden tasks ask about."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from .texts import Text

_PROSE = ("sst2", "trec", "ag")
_MIXED = ("sst2", "trec", "ag", "arc", "gsm8k")


@dataclass(frozen=True, slots=True)
class Attribute:
    """A property that each text of some sources has or has not.

    clauses: say that a text has it, "{text}" standing for the text; the last is held out for the evaluation.
    """

    name: str
    sources: tuple[str, ...]
    clauses: tuple[str, ...]
    holds: Callable[[Text], bool]


def _label(source: str, label: int) -> Callable[[Text], bool]:
    return lambda text: text.source == source and text.label == label


def _source(*sources: str) -> Callable[[Text], bool]:
    return lambda text: text.source in sources


def _asks(name: str, label: int, *clauses: str) -> Attribute:
    return Attribute(f"asks-{name}", ("trec",), clauses, _label("trec", label))


def _topic(name: str, label: int, *clauses: str) -> Attribute:
    return Attribute(f"about-{name}", ("ag",), clauses, _label("ag", label))


def _kind(name: str, source: str, *clauses: str) -> Attribute:
    return Attribute(f"is-{name}", _MIXED, clauses, _source(source))


def _has(word: str, *sources: str) -> Attribute:
    clauses = (
        f'{{text}} contains the word "{word}"',
        f'the word "{word}" is in {{text}}',
        f'{{text}} has "{word}" in it',
        f'"{word}" is one of the words of {{text}}',
    )
    return Attribute(
        f"has-{word}",
        sources or _PROSE,
        clauses,
        lambda text: word in re.findall(r"\w+", text.text.lower()),
    )


def _begins(word: str, *sources: str) -> Attribute:
    clauses = (
        f'{{text}} begins with "{word}"',
        f'the first word of {{text}} is "{word}"',
        f'{{text}} starts with the word "{word}"',
        f'"{word}" comes first in {{text}}',
    )
    return Attribute(
        f"begins-{word}", sources, clauses, lambda text: text.words[0].lower() == word
    )  # fmt: skip


def _longer(words: int, said: str, *sources: str) -> Attribute:
    clauses = (
        f"{{text}} has more than {words} words",
        f"{{text}} is longer than {said} words",
        f"there are over {words} words in {{text}}",
        f"{{text}} runs to more than {said} words",
    )
    return Attribute(f"over-{words}-words", sources, clauses, lambda text: len(text.words) > words)


def _matches(name: str, pattern: str, sources: tuple[str, ...], *clauses: str) -> Attribute:
    found = re.compile(pattern)
    return Attribute(name, sources, clauses, lambda text: bool(found.search(text.text)))


SEMANTIC = (
    Attribute(
        "positive",
        ("sst2",),
        (
            "{text} is positive",
            "the sentiment of {text} is positive",
            "{text} says something good",
            "{text} sounds favourable",
            "the writer of {text} likes it",
        ),
        lambda text: text.label == 1,
    ),
    _asks(
        "description", 0, "{text} asks for a description", "the answer to {text} is an explanation",
        "{text} asks what something means", "{text} wants to have something explained",
    ),
    _asks(
        "thing", 1, "{text} asks for a thing", "the answer to {text} is a thing", "{text} asks for an object",
        "{text} wants to know about an item",
    ),
    _asks(
        "person", 3, "{text} asks for a person", "the answer to {text} is a person", "{text} asks who it was",
        "{text} wants the name of somebody",
    ),
    _asks(
        "place", 4, "{text} asks for a place", "the answer to {text} is a location", "{text} asks where something is",
        "{text} wants the name of a country or a city",
    ),
    _asks(
        "number", 5, "{text} asks for a number", "the answer to {text} is a number", "{text} asks how many or when",
        "{text} wants to know a quantity or a date",
    ),
    _topic(
        "world", 0, "{text} is about world politics", "the topic of {text} is world affairs",
        "{text} reports on governments or wars", "{text} belongs on the page of foreign news",
    ),
    _topic(
        "sports", 1, "{text} is about sports", "the topic of {text} is sport", "{text} reports on a match or a team",
        "{text} belongs on the page of athletes and games",
    ),
    _topic(
        "business", 2, "{text} is about business", "the topic of {text} is the economy",
        "{text} reports on companies or markets", "{text} belongs on the page of money and trade",
    ),
    _topic(
        "technology", 3, "{text} is about technology", "the topic of {text} is science and technology",
        "{text} reports on computers or research", "{text} belongs on the page of inventions",
    ),
    _kind(
        "review", "sst2", "{text} is a film review", "{text} comes from a review of a film",
        "{text} gives an opinion on a film", "a critic of films wrote {text}",
    ),
    _kind(
        "trivia", "trec", "{text} is a trivia question", "{text} is a question of general knowledge",
        "{text} comes from a quiz", "somebody asks {text} in a quiz show",
    ),
    _kind(
        "news", "ag", "{text} is news", "{text} comes from a newspaper", "{text} reports something that happened",
        "a journalist wrote {text}",
    ),
    _kind(
        "science", "arc", "{text} is a science question", "{text} comes from a science exam",
        "{text} is about biology, physics or chemistry", "a teacher of science asks {text}",
    ),
    _kind(
        "maths", "gsm8k", "{text} is a maths problem", "{text} has to be solved by calculating",
        "{text} comes from a maths lesson", "a teacher of arithmetic asks {text}",
    ),
)  # fmt: skip

SURFACE = (
    _matches(
        "question", r"\?$", ("sst2", "trec", "ag", "arc"), "{text} is a question", "{text} ends with a question mark",
        "{text} asks something", 'the last sign of {text} is "?"',
    ),
    _matches(
        "has-digit", r"\d", ("trec", "ag"), "{text} has a digit in it", "{text} contains a number",
        "there are digits in {text}", "{text} is written with at least one numeral",
    ),
    _matches(
        "has-comma", ",", ("sst2", "ag"), "{text} has a comma in it", "{text} contains a comma",
        "there is a comma in {text}", "{text} is divided by commas",
    ),
    _matches(
        "has-hyphen", "-", ("sst2", "ag"), "{text} has a hyphen in it", "{text} contains a hyphen",
        "there is a dash in {text}", "{text} joins words by hyphens",
    ),
    _matches(
        "has-name", r"\s[A-Z][a-z]", ("trec",), "{text} mentions a name",
        "{text} has a capital letter inside", "there is a capitalised word within {text}",
        "a word after the first of {text} is written with a capital",
    ),
    _matches(
        "negated", r"\b(not|no|never|nothing)\b|n't", ("sst2",), "{text} has a negation in it",
        '{text} says "not", "no" or "never"', "there is a negative word in {text}", "{text} denies something",
    ),
    _matches(
        "begins-vowel", "^[aeiouAEIOU]", ("sst2", "mpqa", "ag"), "{text} begins with a vowel",
        "the first letter of {text} is a vowel", "{text} starts with a, e, i, o or u",
        "a vowel is the first letter of {text}",
    ),
    _matches(
        "begins-a-to-m", "^[a-mA-M]", ("sst2", "ag"), "{text} begins with a letter from a to m",
        "the first letter of {text} is in the first half of the alphabet", "{text} starts with a letter before n",
        "the alphabet has the first letter of {text} before n",
    ),
    *(_has(word) for word in ("the", "and", "of", "is", "in", "to", "for", "with")),
    *(_has(word, "sst2") for word in ("film", "movie", "but")),
    *(_begins(word, "trec") for word in ("what", "how", "who")),
    _begins("the", "sst2", "mpqa"),
    _longer(3, "three", "mpqa"),
    _longer(8, "eight", "trec"),
    _longer(12, "twelve", "sst2", "trec"),
    _longer(18, "eighteen", "sst2"),
)  # fmt: skip
