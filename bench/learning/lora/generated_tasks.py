"""Small tasks made of the built-in ones: a question about their texts, and two words to answer it with."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import TypeAlias

from zweave.errors import ZweaveError
from zweave.names import Split
from zweave.tasks import Sample, Splits, Task, resolve_task
from zweave.text.chatml import chat, parse_chat
from zweave.text.prompt_template import PromptTemplate

# A text and its answer in the task that it comes from.
Holds: TypeAlias = Callable[[str, str], bool]

# Words for yes and for no: a model that knows the attribute still has to learn which word means what.
ANSWERS = (
    ("yes", "no"), ("no", "yes"), ("true", "false"), ("good", "bad"), ("red", "blue"), ("blue", "green"),
    ("up", "down"), ("left", "right"), ("hot", "cold"), ("day", "night"), ("dog", "cat"), ("one", "two"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attribute:
    """What a text may have.

    name: of the task's name.
    question: about the text, which follows it.
    """

    name: str
    question: str
    holds: Holds


def generated_tasks(count: int, seed: int = 0) -> list[Task]:
    """The first tasks of an order that the seed draws, all different; ZweaveError for more than there are."""
    found = [
        _task(source, attribute, answers)
        for source, attributes in ATTRIBUTES.items()
        for attribute, answers in product(attributes, ANSWERS)
    ]
    if count > len(found):
        raise ZweaveError(f"there are {len(found)} generated tasks, not {count}")
    random.Random(seed).shuffle(found)
    return found[:count]


def _task(source: str, attribute: Attribute, answers: tuple[str, str]) -> Task:
    yes, no = answers
    # The question stands first: the prompts of a batch share it, and training computes it once.
    template = PromptTemplate(
        f"{attribute.question} Say {yes} if so, {no} if not.\nText: {{text}}", "The answer is"
    )
    labels = (f" {yes}", f" {no}")
    return Task(
        f"{source}-{attribute.name}-{yes}-{no}",
        f"{attribute.question} ({yes} or {no}; texts of {source})",
        partial(_read, source, attribute.holds, template, labels),
        labels,
        template=template,
    )


def _read(
    source: str, holds: Holds, template: PromptTemplate, labels: tuple[str, str], data: Path | None
) -> Splits:
    def samples(split: Split) -> list[Sample]:
        return [
            Sample(chat(*template.fill(text)), labels[0] if holds(text, answer) else labels[1])
            for text, answer in _texts(source, split, data)
        ]

    return Splits(samples("train"), samples("test"), samples("validation"))


@lru_cache(maxsize=16)
def _texts(source: str, split: Split, data: Path | None) -> list[tuple[str, str]]:
    """The bare texts of a task with their answers."""
    task = resolve_task(source)
    assert task.template is not None
    found = []
    for sample in task.samples(split, data):
        turn = parse_chat(sample.prompt)
        assert turn is not None
        found.append((task.template.bare(turn[0]), sample.answer))
    return found


def _longer(words: int) -> Attribute:
    return Attribute(
        f"over-{words}-words",
        f"Does this text have more than {words} words?",
        lambda text, _: len(text.split()) > words,
    )


def _has(word: str) -> Attribute:
    return Attribute(
        f"has-{word}",
        f'Does this text have the word "{word}" in it?',
        lambda text, _: word in re.findall(r"\w+", text.lower()),
    )


def _begins(word: str) -> Attribute:
    return Attribute(
        f"begins-{word}",
        f'Does this text begin with "{word}"?',
        lambda text, _: text.lower().startswith(word),
    )


def _is(label: str, question: str) -> Attribute:
    return Attribute(f"is-{label}", question, lambda _, answer: answer.strip() == label)


_NUMBER = Attribute(
    "has-number", "Does this text have a number in it?", lambda text, _: bool(re.search(r"\d", text))
)
_NAME = Attribute(
    "has-name", "Does this text mention a name?", lambda text, _: bool(re.search(r"\s[A-Z][a-z]", text))
)
_COMMA = Attribute("has-comma", "Does this text have a comma in it?", lambda text, _: "," in text)
_POSITIVE = _is("positive", "Is this text positive?")

ATTRIBUTES: dict[str, tuple[Attribute, ...]] = {
    "sst2": (
        *map(_longer, (12, 16, 20, 24)),
        *map(_has, ("the", "and", "of", "it", "is", "movie", "film", "but")),
        _COMMA,
        _POSITIVE,
    ),
    "trec": (
        *map(_longer, (7, 9, 12)),
        *map(_has, ("the", "of", "is", "did", "in")),
        *map(_begins, ("what", "how", "who")),
        _NUMBER,
        _NAME,
        *(
            _is(label, f"Does this text ask for a {label}?")
            for label in ("description", "thing", "person", "location", "number")
        ),
    ),
    "mpqa": (*map(_longer, (2, 3)), *map(_has, ("the", "of", "to")), _POSITIVE),
}
