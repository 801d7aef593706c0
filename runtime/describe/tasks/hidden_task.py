"""Tasks that only their description tells: the prompt holds the text alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Protocol

from ...errors import ZweaveError
from ...tasks.task import Sample, Splits, Task
from ...text.chatml import chat
from ...text.prompt_template import PromptTemplate
from .attributes import SEMANTIC, SURFACE, Attribute
from .label_words import LABEL_WORDS, PAIRS
from .numbers import NUMBERS, OPERATIONS, Operation
from .strings import STRINGS
from .texts import Half, Text, texts
from .wordings import labelled, numeric

OPENING = "The answer is"
BARE = PromptTemplate("Text: {text}", OPENING)
# The list stands first: its keys and values are the same for all texts.
LISTED = PromptTemplate(f"Words: {', '.join(LABEL_WORDS)}\nText: {{text}}", OPENING)


class HiddenTask(Protocol):
    """What to do with a text of some sources."""

    @property
    def name(self) -> str: ...

    @property
    def attribute(self) -> str:
        """The name of what it asks about, equal for tasks that differ in their label words alone."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The possible answers, each with its leading space; empty where it is a number."""

    def answer(self, text: Text) -> str:
        """With its leading space."""

    def describe(self, rng: random.Random, held_out: bool = False) -> str:
        """A description of the task; held-out wordings share no template and no clause with the others."""


@dataclass(frozen=True, slots=True)
class LabelTask:
    """Says one word for texts that have an attribute, and another for those that have not."""

    asked: Attribute
    yes: str
    no: str

    @property
    def name(self) -> str:
        return f"{self.asked.name}-{self.yes}-{self.no}"

    @property
    def attribute(self) -> str:
        return self.asked.name

    @property
    def sources(self) -> tuple[str, ...]:
        return self.asked.sources

    @property
    def labels(self) -> tuple[str, ...]:
        return f" {self.yes}", f" {self.no}"

    def answer(self, text: Text) -> str:
        return f" {self.yes if self.asked.holds(text) else self.no}"

    def describe(self, rng: random.Random, held_out: bool = False) -> str:
        return labelled(self.asked.clauses, self.yes, self.no, rng, held_out)


@dataclass(frozen=True, slots=True)
class NumberTask:
    """Says what an operation makes of two numbers."""

    asked: Operation

    @property
    def name(self) -> str:
        return self.asked.name

    @property
    def attribute(self) -> str:
        return self.asked.name

    @property
    def sources(self) -> tuple[str, ...]:
        return ("numbers",)

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    def answer(self, text: Text) -> str:
        return f" {self.asked.result(*text.terms)}"

    def describe(self, rng: random.Random, held_out: bool = False) -> str:
        return numeric(self.asked.phrases, rng, held_out)


@lru_cache(maxsize=1)
def hidden_tasks() -> tuple[HiddenTask, ...]:
    """All of them: each attribute under each pair of label words in both orders, and each operation."""
    attributes = (*SEMANTIC, *SURFACE, *NUMBERS, *STRINGS)
    orders = [order for pair in PAIRS for order in (pair, pair[::-1])]
    under_labels = [LabelTask(attribute, *order) for attribute, order in product(attributes, orders)]
    return (*under_labels, *map(NumberTask, OPERATIONS))


def chosen_tasks(
    tasks: Sequence[HiddenTask],
    attributes: Sequence[str] | None = None,
    words: Sequence[Sequence[str]] | None = None,
) -> tuple[HiddenTask, ...]:
    """Those of some attributes, and of some pairs of label words in both orders.

    attributes: None for all whose texts need no optional package, so that all means the same on all machines.
    words: leaves out the tasks without label words.
    Raises ZweaveError for unknown names, and if there is no such task.
    """
    known = {task.attribute for task in tasks}
    if unknown := [name for name in attributes or () if name not in known]:
        raise ZweaveError(f"there is no attribute {unknown[0]!r}: choose of {', '.join(sorted(known))}")
    if unknown := ["-".join(pair) for pair in words or () if tuple(pair) not in PAIRS]:
        raise ZweaveError(
            f"there is no pair of words {unknown[0]!r}: choose of {', '.join(map('-'.join, PAIRS))}"
        )
    optional = {attribute.name for attribute in STRINGS}
    pairs = [frozenset(f" {word}" for word in pair) for pair in words or ()]
    chosen = tuple(
        task
        for task in tasks
        if (task.attribute not in optional if attributes is None else task.attribute in attributes)
        and (words is None or frozenset(task.labels) in pairs)
    )
    if not chosen:
        raise ZweaveError(
            "no hidden task has these attributes and these words: an operation is answered by a number"
        )
    return chosen


def in_one_order(tasks: Sequence[HiddenTask]) -> tuple[HiddenTask, ...]:
    """Those whose first word of each pair means yes, so that a description need not say which word means what."""
    return tuple(task for task in tasks if not isinstance(task, LabelTask) or (task.yes, task.no) in PAIRS)


def as_task(hidden: HiddenTask, listed: bool, seed: int = 0, most: int | None = None) -> Task:
    """The task as trainers and evaluations take it.

    listed: whether the prompt lists all label words, the same for every task.
    seed: of the description that it is told by.
    most: texts of a source to train on, the same for all tasks, whose prompts are then computed once; None for all.
    """
    template = LISTED if listed else BARE
    return Task(
        f"hidden:{hidden.name}",
        hidden.describe(random.Random(seed)),
        partial(_read, hidden, template, most),
        hidden.labels,
        max_tokens=1 if hidden.labels else 5,
        template=template,
    )


def samples(
    hidden: HiddenTask, template: PromptTemplate, half: Half, data: Path | None, most: int | None = None
) -> list[Sample]:
    """The prompts of one half of the texts, with their answers.

    most: texts of a source.
    """
    return [
        Sample(chat(*template.fill(text.text)), hidden.answer(text))
        for source in hidden.sources
        for text in texts(source, half, data)[:most]
    ]


def _read(hidden: HiddenTask, template: PromptTemplate, most: int | None, data: Path | None) -> Splits:
    return Splits(samples(hidden, template, "train", data, most), samples(hidden, template, "test", data))
