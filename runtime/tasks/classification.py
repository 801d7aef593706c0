"""Texts with one of a few labels: sentiment, kind of question, polarity of phrases, topic of news."""

from collections.abc import Callable
from pathlib import Path

from . import prompts
from .files import read_csv, read_lines, split_pool, task_file
from .task import Sample, Splits, Task

POLARITIES = (" negative", " positive")
QUESTION_TYPES = (" description", " thing", " abbreviation", " person", " location", " number")
TOPICS = (" world", " sports", " business", " technology")

Labelled = tuple[str, int]


def tab_separated(path: Path) -> list[Labelled]:
    """`text<TAB>label` a line."""

    def read(line: str) -> Labelled:
        text, label = line.rsplit("\t", 1)
        return text, int(label)

    return read_lines(path, read, "text, a tab and a whole number")


def label_first(path: Path) -> list[Labelled]:
    """`label text` a line, Latin-1."""

    def read(line: str) -> Labelled:
        label, text = line.split(" ", 1)
        return text.strip(), int(label)

    return read_lines(path, read, "a whole number, a space and text", "latin-1")


def news(path: Path) -> list[Labelled]:
    """`"class","title","text"` a row, classes from 1 on; title and text as one."""

    def read(row: list[str]) -> Labelled:
        label, title, text = row
        return f"{title} {text}".replace("\\", " "), int(label) - 1

    return read_csv(path, read, "a class, a title and a text")


def _samples(found: list[Labelled], prompt: Callable[[str], str], labels: tuple[str, ...]) -> list[Sample]:
    # A label outside the list is kept as it stands, so that the task names it when it checks its labels.
    return [
        Sample(prompt(text), labels[label] if 0 <= label < len(labels) else f"label {label}")
        for text, label in found
    ]


def _sst2(data: Path | None) -> Splits:
    def read(name: str) -> list[Sample]:
        return _samples(tab_separated(task_file(data, name)), prompts.sentiment, POLARITIES)

    return Splits(read("sst2_train.tsv"), read("sst2_test.tsv"))


def _trec(data: Path | None) -> Splits:
    def read(name: str) -> list[Sample]:
        return _samples(label_first(task_file(data, name)), prompts.question_type, QUESTION_TYPES)

    return Splits(read("TREC.train.all"), read("TREC.test.all"))


def _mpqa(data: Path | None) -> Splits:
    return split_pool(_samples(label_first(task_file(data, "mpqa.all")), prompts.phrase, POLARITIES))


def _ag_news(data: Path | None) -> Splits:
    return split_pool(_samples(news(task_file(data, "ag_test.csv")), prompts.topic, TOPICS))


TASKS = (
    Task(
        "sst2",
        "Is a sentence of a film review positive or negative? (SST-2)",
        _sst2,
        POLARITIES,
        template=prompts.SENTIMENT,
    ),
    Task(
        "trec",
        "What kind of answer does a question ask for? (TREC-6)",
        _trec,
        QUESTION_TYPES,
        template=prompts.QUESTION_TYPE,
    ),
    Task("mpqa", "Is a phrase positive or negative? (MPQA)", _mpqa, POLARITIES, template=prompts.PHRASE),
    Task(
        "ag-news",
        "Which of four topics has a piece of news? (AG News)",
        _ag_news,
        TOPICS,
        template=prompts.TOPIC,
    ),
)
