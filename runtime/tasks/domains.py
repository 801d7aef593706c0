"""Which of five domains a prompt is about, as a dispatcher has to decide. The texts carry no instruction."""

import random
from collections.abc import Iterable
from pathlib import Path

from . import prompts
from .classification import label_first, news, tab_separated
from .exact_match import problems
from .files import task_file
from .multiple_choice import choices
from .task import Sample, Splits, Task

DOMAINS = (" review", " question", " maths", " science", " news")
TRAIN, TEST = 500, 200


def domain_texts(data: Path | None) -> tuple[list[list[str]], list[list[str]]]:
    """Texts to train on and held-out ones, a list a domain, in a fixed order."""

    def labelled(found: list[tuple[str, int]]) -> list[str]:
        return [text for text, _ in found]

    pools = [
        (
            labelled(tab_separated(task_file(data, "sst2_train.tsv"))),
            labelled(tab_separated(task_file(data, "sst2_test.tsv"))),
        ),
        (
            labelled(label_first(task_file(data, "TREC.train.all"))),
            labelled(label_first(task_file(data, "TREC.test.all"))),
        ),
        _halves([problem.question for problem in problems(task_file(data, "gsm8k_test.jsonl"))]),
        (
            [choice.question for choice in choices(task_file(data, "ARC-Easy_train.json"))],
            [choice.question for choice in choices(task_file(data, "ARC-Easy_test.json"))],
        ),
        _halves(labelled(news(task_file(data, "ag_test.csv")))),
    ]
    return [_fixed(train) for train, _ in pools], [_fixed(test) for _, test in pools]


def _fixed(texts: Iterable[str]) -> list[str]:
    ordered = sorted(set(texts))
    random.Random(0).shuffle(ordered)
    return ordered


def _halves(texts: list[str]) -> tuple[list[str], list[str]]:
    ordered = _fixed(texts)
    middle = len(ordered) // 2
    return ordered[:middle], ordered[middle:]


def _read(data: Path | None) -> Splits:
    def samples(pools: list[list[str]], count: int) -> list[Sample]:
        return [
            Sample(prompts.domain(text), label, {"text": text})
            for label, pool in zip(DOMAINS, pools, strict=True)
            for text in pool[:count]
        ]

    train, test = domain_texts(data)
    return Splits(samples(train, TRAIN), samples(test, TEST))


TASKS = (
    Task(
        "domains",
        "Is a text a review, a question, maths, science or news?",
        _read,
        DOMAINS,
        template=prompts.DOMAIN,
    ),
)
