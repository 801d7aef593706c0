"""Questions with lettered choices: ARC, in the format of LLM-Adapters' dataset folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import prompts
from .files import read_json_list, split_pool, task_file
from .task import Sample, Splits, Task

LETTERS = (" A", " B", " C", " D", " E")
_FORM = re.compile(
    r"Please choose the correct answer to the question: (.*?)\n\nAnswer1: (.*?)\n\nAnswer format:", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Choice:
    """A question, what may be answered, and the index of what is right."""

    question: str
    options: tuple[str, ...]
    right: int


def choices(path: Path) -> list[Choice]:
    """Reads a JSON list of {"instruction", "answer": "answerN"}."""

    def read(entry: Mapping[str, str]) -> Choice:
        found = _FORM.match(entry["instruction"])
        if found is None:
            raise ValueError
        options = tuple(re.split(r" ?Answer[2-9]: ", found[2]))
        right = int(entry["answer"].removeprefix("answer")) - 1
        if not 0 <= right < len(options) <= len(LETTERS):
            raise ValueError
        return Choice(found[1].strip(), tuple(option.strip() for option in options), right)

    return read_json_list(path, read, "a question with choices and the right one's number")


def _samples(path: Path) -> list[Sample]:
    return [Sample(prompts.choice(c.question, c.options), LETTERS[c.right]) for c in choices(path)]


def _easy(data: Path | None) -> Splits:
    return Splits(
        _samples(task_file(data, "ARC-Easy_train.json")), _samples(task_file(data, "ARC-Easy_test.json"))
    )


def _challenge(data: Path | None) -> Splits:
    return split_pool(_samples(task_file(data, "ARC-Challenge_test.json")))


TASKS = (
    Task("arc-easy", "Science questions with lettered choices (ARC-Easy)", _easy, LETTERS),
    Task("arc-challenge", "Harder science questions (ARC-Challenge)", _challenge, LETTERS),
)
