"""What a text may be or have: the attributes that hidden tasks ask about."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from .clauses import CLAUSES
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


def _told(name: str, sources: tuple[str, ...], holds: Callable[[Text], bool]) -> Attribute:
    return Attribute(name, sources, CLAUSES[name], holds)


def _asks(name: str, label: int) -> Attribute:
    return _told(f"asks-{name}", ("trec",), _label("trec", label))


def _topic(name: str, label: int) -> Attribute:
    return _told(f"about-{name}", ("ag",), _label("ag", label))


def _kind(name: str, source: str) -> Attribute:
    return _told(f"is-{name}", _MIXED, _source(source))


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


def _matches(name: str, pattern: str, *sources: str) -> Attribute:
    found = re.compile(pattern)
    return _told(name, sources, lambda text: bool(found.search(text.text)))


SEMANTIC = (
    _told("positive", ("sst2",), lambda text: text.label == 1),
    _asks("description", 0),
    _asks("thing", 1),
    _asks("person", 3),
    _asks("place", 4),
    _asks("number", 5),
    _topic("world", 0),
    _topic("sports", 1),
    _topic("business", 2),
    _topic("technology", 3),
    _kind("review", "sst2"),
    _kind("trivia", "trec"),
    _kind("news", "ag"),
    _kind("science", "arc"),
    _kind("maths", "gsm8k"),
)

SURFACE = (
    _matches("question", r"\?$", "sst2", "trec", "ag", "arc"),
    _matches("has-digit", r"\d", "trec", "ag"),
    _matches("has-comma", ",", "sst2", "ag"),
    _matches("has-hyphen", "-", "sst2", "ag"),
    _matches("has-name", r"\s[A-Z][a-z]", "trec"),
    _matches("negated", r"\b(not|no|never|nothing)\b|n't", "sst2"),
    _matches("begins-vowel", "^[aeiouAEIOU]", "sst2", "mpqa", "ag"),
    _matches("begins-a-to-m", "^[a-mA-M]", "sst2", "ag"),
    *(_has(word) for word in ("the", "and", "of", "is", "in", "to", "for", "with")),
    *(_has(word, "sst2") for word in ("film", "movie", "but")),
    *(_begins(word, "trec") for word in ("what", "how", "who")),
    _begins("the", "sst2", "mpqa"),
    _longer(3, "three", "mpqa"),
    _longer(8, "eight", "trec"),
    _longer(12, "twelve", "sst2", "trec"),
    _longer(18, "eighteen", "sst2"),
)
