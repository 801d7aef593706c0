"""A task: samples with a verifiable reward, in three splits that share no prompt."""

import math
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import get_args

from ..errors import ZweaveError, one_line, shortened
from ..names import Split as Split
from ..text.labels import label_said
from ..text.prompt_template import PromptTemplate
from ..validation import has_lone_surrogate


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt that ends where the answer begins, and the answer, with its leading space where it has one.

    data: what the reward needs beside the text. Samples with an equal "group" fall into the same split, so that
        b + a is not trained where a + b is held out; without one, or with None, each prompt is a group of its own.
    """

    prompt: str
    answer: str
    data: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def group(self) -> object:
        group = self.data.get("group")
        return self.prompt if group is None else group


@dataclass(frozen=True, slots=True)
class Splits:
    """A task's samples in the order of their source; validation is carved out of `train` by the task."""

    train: Sequence[Sample]
    test: Sequence[Sample]
    validation: Sequence[Sample] = ()


def exact(sample: Sample, text: str) -> float:
    """+1 when the text is the answer but for white space, else -1."""
    return 1.0 if "".join(text.split()) == "".join(sample.answer.split()) else -1.0


def says_label(labels: Sequence[str]) -> Callable[[Sample, str], float]:
    """A judge that reads the label that a text begins with: what a model goes on with after it does not count."""
    return lambda sample, text: exact(sample, label_said(text, labels) or text)


@dataclass(frozen=True)
class Task:
    """Where samples come from and what an answer is worth.

    read: (directory of the task files, None without one) -> samples. The splits follow from the files alone and
        never from a seed: what one seed trains on, no other seed tests on.
    labels: the possible answers; empty when the answer is any text.
    max_tokens: of an answer, its end token included; labels take as many tokens as the longest of them has.
    stop: strings before which an answer ends.
    judge: (sample, answered text) -> reward, above 0 where the answer is right.
    validation: how many samples validation takes of `train`, at most a fifth of them.
    template: the words that its prompts have around a text, if they all have the same; the task's experts ask so.
    """

    name: str
    description: str
    read: Callable[[Path | None], Splits]
    labels: tuple[str, ...] = ()
    max_tokens: int = 1
    stop: tuple[str, ...] = ()
    judge: Callable[[Sample, str], float] = exact
    validation: int = 500
    template: PromptTemplate | None = None

    def __post_init__(self) -> None:
        if not self.name or self.max_tokens < 1 or self.validation < 1:
            raise ZweaveError("a task has a name, and max_tokens and validation of at least 1")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ZweaveError(f"the labels of {self.name} must be two or more, all different")

    def samples(self, split: Split, data: Path | None = None, seed: int = 0) -> list[Sample]:
        """Samples of a split in an order that the seed draws.

        data: directory of the task files; tasks that are generated need none
        Raises ZweaveError for files that are missing or malformed, and when the split is empty.
        """
        if split not in get_args(Split):
            raise ZweaveError(f"a split is one of {', '.join(get_args(Split))}, not {split!r}")
        splits = self._splits(data)
        found = list(getattr(splits, split))
        if not found:
            counts = ", ".join(f"{name} {len(getattr(splits, name))}" for name in get_args(Split))
            raise ZweaveError(f"the task {self.name} has no {split} samples ({counts})")
        random.Random(seed).shuffle(found)
        return found

    def has(self, split: Split, data: Path | None = None) -> bool:
        """Whether a split holds samples; raises as `samples` does, but not for an empty one."""
        return bool(getattr(self._splits(data), split))

    def reward(self, sample: Sample, text: str) -> float:
        """What an answer is worth, a finite number; ZweaveError when the judge raises or gives none."""
        try:
            value = float(self.judge(sample, text))
        except ZweaveError:
            raise
        except Exception as error:
            reason = one_line(error, with_type=True)
            raise ZweaveError(f"the reward of the task {self.name} fails: {reason}") from error
        if not math.isfinite(value):
            raise ZweaveError(f"the reward of the task {self.name} is {value}: it must be a finite number")
        return value

    def _splits(self, data: Path | None) -> Splits:
        source = self._read(data)
        self._check_labels(source)
        test_groups = {sample.group for sample in source.test}
        train = [sample for sample in source.train if sample.group not in test_groups]
        if source.validation:
            held = [sample for sample in source.validation if sample.group not in test_groups]
        else:
            held = self._carve(train)
        held_groups = {sample.group for sample in held}
        train = [sample for sample in train if sample.group not in held_groups]
        return Splits(train, list(source.test), held)

    def _read(self, data: Path | None) -> Splits:
        """What `read` returns, checked: it may be a user's own code."""
        try:
            source = self.read(data)
        except ZweaveError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) and error.filename:
                raise ZweaveError(f"{error.filename} is missing: the task {self.name} reads it") from None
            raise ZweaveError(f"the task {self.name} fails: {one_line(error, with_type=True)}") from error
        if not isinstance(source, Splits):
            raise ZweaveError(
                f"the read of the task {self.name} must return Splits(train, test), not {shortened(source)}"
            )
        for split in get_args(Split):
            samples = getattr(source, split)
            if not isinstance(samples, Sequence):
                raise ZweaveError(
                    f"the task {self.name}: {split} must be a list of samples, not {shortened(samples)}"
                )
            for index, sample in enumerate(samples):
                if fault := _fault(sample):
                    raise ZweaveError(f"the task {self.name}: sample {index} of {split} {fault}")
        return source

    def _check_labels(self, source: Splits) -> None:
        if not self.labels:
            return
        for sample in (*source.train, *source.validation, *source.test):
            if sample.answer not in self.labels:
                known = ", ".join(map(repr, self.labels))
                raise ZweaveError(
                    f"the task {self.name} has an answer {sample.answer!r} that is none of {known}"
                )

    def _carve(self, train: Sequence[Sample]) -> list[Sample]:
        """Whole groups, drawn without a seed, until validation has its samples."""
        groups: dict[object, list[Sample]] = {}
        for sample in train:
            groups.setdefault(sample.group, []).append(sample)
        order = list(groups.values())
        random.Random(0).shuffle(order)
        held: list[Sample] = []
        wanted = min(self.validation, len(train) // 5)
        for group in order:
            if len(held) + len(group) <= wanted:
                held += group
        return held


def _fault(sample: object) -> str:
    """What keeps an object from being a sample; empty where nothing does."""
    if not isinstance(sample, Sample):
        return f"must be Sample(prompt, answer), not {shortened(sample)}"
    for name, text in (("prompt", sample.prompt), ("answer", sample.answer)):
        if not isinstance(text, str):
            return f"has the {name} {shortened(text)}, and it must be text"
        if has_lone_surrogate(text):
            return f"has a lone surrogate in its {name}, which is no character: remove it"
    if not isinstance(sample.group, Hashable):
        return f"has the group {shortened(sample.group)}, and it must be text or a number"
    return ""


def balanced_shots(samples: Sequence[Sample], labels: Sequence[str], seed: int, count: int) -> list[Sample]:
    """The first samples of `balanced`: `count`, or as many as there are if they are fewer."""
    return list(islice(balanced(samples, labels, seed), min(count, len(samples))))


def balanced(samples: Sequence[Sample], labels: Sequence[str], seed: int) -> Iterator[Sample]:
    """Draws endlessly, one label after the other, each label's samples in a new order every round."""
    rng = random.Random(seed)

    def shuffled(pool: list[Sample]) -> Iterator[Sample]:
        while True:
            yield from rng.sample(pool, len(pool))

    pools = [[s for s in samples if s.answer == label] for label in labels] or [list(samples)]
    streams = [shuffled(pool) for pool in pools if pool]
    for stream in cycle(streams):
        yield next(stream)
