"""The tasks of the demo experts: prompts, answers, and which samples are held out."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, cycle
from pathlib import Path

from zweave import prompts
from zweave.errors import ZweaveError


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt that ends where the answer begins, and the answer with its leading space."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task with its training and its held-out samples.

    labels: the possible answers, each one token; empty when the answer is generated
    read: (directory of the data files, seed) -> (training samples, held-out samples)
    """

    name: str
    description: str
    labels: tuple[str, ...]
    read: Callable[[Path, int], tuple[list[Sample], list[Sample]]]

    def samples(self, data: Path, seed: int = 0) -> tuple[list[Sample], list[Sample]]:
        """Shuffled training and held-out samples; no held-out prompt is among the training prompts.

        Raises ZweaveError when a data file is missing.
        """
        try:
            train, held_out = self.read(data, seed)
        except FileNotFoundError as error:
            raise ZweaveError(f"{error.filename} is missing: give the directory of the task files") from None
        shuffle = random.Random(seed).shuffle
        shuffle(train)
        shuffle(held_out)
        unseen = {sample.prompt for sample in held_out}
        return [sample for sample in train if sample.prompt not in unseen], held_out


def balanced(samples: list[Sample], labels: tuple[str, ...], seed: int) -> Iterator[Sample]:
    """Draws endlessly, one label after the other, each label's samples in a new order every round."""
    rng = random.Random(seed)

    def shuffled(pool: list[Sample]) -> Iterator[Sample]:
        while True:
            yield from rng.sample(pool, len(pool))

    pools = [[s for s in samples if s.answer == label] for label in labels] or [samples]
    streams = [shuffled(pool) for pool in pools if pool]
    for stream in cycle(streams):
        yield next(stream)


SENTIMENTS = (" negative", " positive")
QUESTION_TYPES = (" description", " thing", " abbreviation", " person", " location", " number")


def _sentiment(data: Path, seed: int) -> tuple[list[Sample], list[Sample]]:
    def sample(line: str) -> Sample:
        text, label = line.rsplit("\t", 1)
        return Sample(prompts.sentiment(text), SENTIMENTS[int(label)])

    def read(name: str) -> list[Sample]:
        return [sample(line) for line in (data / name).read_text("utf-8").split("\n") if line]

    return read("sst2_train.tsv"), read("sst2_test.tsv")


def _question_type(data: Path, seed: int) -> tuple[list[Sample], list[Sample]]:
    def sample(line: str) -> Sample:
        label, text = line.split(" ", 1)
        return Sample(prompts.question_type(text), QUESTION_TYPES[int(label)])

    def read(name: str) -> list[Sample]:
        return [sample(line) for line in (data / name).read_text("latin-1").split("\n") if line]

    return read("TREC.train.all"), read("TREC.test.all")


def _addition(data: Path, seed: int) -> tuple[list[Sample], list[Sample]]:
    def sample(a: int, b: int) -> Sample:
        return Sample(prompts.addition(a, b), f" {a + b}")

    # Pairs are split before they are ordered, so that no b + a is trained whose a + b is held out.
    rng = random.Random(seed)
    pairs = list(combinations_with_replacement(range(10, 100), 2))
    rng.shuffle(pairs)
    train = [sample(*order) for a, b in pairs[600:] for order in {(a, b), (b, a)}]
    return train, [sample(*rng.sample(pair, 2)) for pair in pairs[:600]]


TASKS = {
    task.name: task
    for task in (
        Task("sentiment", "Is a sentence of a film review positive or negative?", SENTIMENTS, _sentiment),
        Task("question-type", "What kind of answer does a question ask for?", QUESTION_TYPES, _question_type),
        Task("addition", "Adds two numbers of two digits.", (), _addition),
    )
}
