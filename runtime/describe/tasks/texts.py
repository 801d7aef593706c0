"""The texts that hidden tasks are about: from the user's own task files, pairs of numbers, and pairs of strings."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from ...tasks.classification import label_first, news, tab_separated
from ...tasks.exact_match import problems
from ...tasks.files import task_file
from ...tasks.multiple_choice import choices
from ...tasks.reasoning_gym import gym_problems

# Long texts cost keys and values and say no more about a task.
MOST_WORDS = 40
_TEST = 1000

Half: TypeAlias = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Text:
    """A text, where it comes from, and its class there; -1 where the source has none."""

    source: str
    text: str
    label: int = -1

    @property
    def words(self) -> list[str]:
        return self.text.split()

    @property
    def terms(self) -> tuple[int, int]:
        """The two numbers of a text of the source "numbers"."""
        first, _, second = self.words
        return int(first), int(second)


_Found: TypeAlias = Iterable[tuple[str, int]]
_Reader: TypeAlias = Callable[[Path | None], _Found]


def _files(train: str, test: str, read: Callable[[Path], _Found]) -> tuple[_Reader, _Reader]:
    return lambda data: read(task_file(data, train)), lambda data: read(task_file(data, test))


def _halves(read: Callable[[Path | None], _Found]) -> tuple[_Reader, _Reader]:
    """Of one file: what is held out is drawn once and for all."""

    def part(data: Path | None, held_out: bool) -> _Found:
        found = sorted(set(read(data)))
        random.Random(0).shuffle(found)
        count = min(_TEST, len(found) // 2)
        return found[:count] if held_out else found[count:]

    return lambda data: part(data, False), lambda data: part(data, True)


def _questions(path: Path) -> _Found:
    return [(choice.question, -1) for choice in choices(path)]


def _maths(data: Path | None) -> _Found:
    return [(problem.question, -1) for problem in problems(task_file(data, "gsm8k_test.jsonl"))]


def _numbers(_: Path | None) -> _Found:
    return [(f"{a} ? {b}", -1) for a in range(10, 100) for b in range(10, 100) if a != b]


def _strings(_: Path | None) -> _Found:
    # Longer ones are many tokens, of which the model sees no pattern.
    problems = gym_problems("isomorphic_strings", 4000, seed=0, min_string_length=2, max_string_length=4)
    return [(" ".join(found["metadata"]["words"]), int(found["answer"] == "True")) for found in problems]


# Of each source the texts to train on and the held-out ones.
SOURCES: dict[str, tuple[_Reader, _Reader]] = {
    "sst2": _files("sst2_train.tsv", "sst2_test.tsv", tab_separated),
    "trec": _files("TREC.train.all", "TREC.test.all", label_first),
    "mpqa": _halves(lambda data: label_first(task_file(data, "mpqa.all"))),
    "ag": _halves(lambda data: news(task_file(data, "ag_test.csv"))),
    "arc": _files("ARC-Easy_train.json", "ARC-Easy_test.json", _questions),
    "gsm8k": _halves(_maths),
    "numbers": _halves(_numbers),
    "strings": _halves(_strings),
}


@lru_cache(maxsize=32)
def texts(source: str, half: Half, data: Path | None) -> tuple[Text, ...]:
    """The texts of a source in a fixed order; no text stands in both halves.

    data: directory of the task files; "numbers" needs none, and "strings" the package reasoning-gym.
    Raises ZweaveError for a file that is missing or malformed, and without the package.
    """
    train, test = SOURCES[source]
    held_out = _kept(source, test(data))
    if half == "test":
        return tuple(held_out)
    known = {text.text for text in held_out}
    return tuple(text for text in _kept(source, train(data)) if text.text not in known)


def _kept(source: str, found: _Found) -> list[Text]:
    """The short ones, each once, shuffled."""
    first: dict[str, int] = {}
    for text, label in found:
        first.setdefault(" ".join(text.split()), label)
    kept = [Text(source, text, label) for text, label in first.items() if 0 < len(text.split()) <= MOST_WORDS]
    random.Random(0).shuffle(kept)
    return kept
