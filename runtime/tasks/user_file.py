"""A user's own task: a JSONL file of prompts and answers, or a Python file that makes a Task."""

import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from ..errors import ZweaveError
from ..io.python_file import python_object
from .files import read_json_lines
from .task import Sample, Split, Splits, Task

MAX_TOKENS = 256
_WHAT = 'a JSON object with the texts "prompt" and "answer"'


def python_task(path: Path) -> Task:
    """The Task that a Python file calls `task`; ZweaveError with the file's own error if it fails."""
    task = python_object(path, "task")
    if not isinstance(task, Task):
        raise ZweaveError(f"{path} defines no task: write task = zweave.tasks.Task(...)")
    return task


def jsonl_task(path: Path) -> Task:
    """A task of the lines {"prompt", "answer"}, each with an optional "split"; other keys go to `Sample.data`.

    The first line may be {"labels": [...]} alone: the answers are then chosen among those. Without any "split" a
    fifth of the prompts is held out. An answer is right when it is the sample's but for white space.
    """
    entries = read_json_lines(path, _entry, _WHAT)
    labels: tuple[str, ...] = ()
    if entries and "labels" in entries[0]:
        labels = tuple(entries.pop(0)["labels"])
    if any("labels" in entry for entry in entries):
        raise ZweaveError(f"{path}: only the first line may give the labels")
    samples = [_sample(entry) for entry in entries]
    if not samples:
        raise ZweaveError(f"{path} has no samples: write one {_WHAT} a line")
    # A token of a byte-level vocabulary is at least a byte; one more ends the answer.
    longest = max(len(sample.answer.encode()) for sample, _ in samples)
    one_line = not any("\n" in sample.answer.strip() for sample, _ in samples)
    return Task(
        path.stem,
        f"samples of {path.name}",
        partial(_splits, samples),
        labels=labels,
        max_tokens=1 if labels else min(longest + 1, MAX_TOKENS),
        stop=("\n",) if one_line and not labels else (),
    )


def _entry(entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise TypeError
    if "labels" in entry:
        if set(entry) != {"labels"} or not all(isinstance(label, str) and label for label in entry["labels"]):
            raise ValueError
        return entry
    if not (isinstance(entry["prompt"], str) and isinstance(entry["answer"], str)):
        raise TypeError
    if (
        not entry["prompt"]
        or not entry["answer"].strip()
        or entry.get("split", "train") not in get_args(Split)
    ):
        raise ValueError
    return entry


def _sample(entry: Mapping[str, Any]) -> tuple[Sample, Split | None]:
    data = {key: value for key, value in entry.items() if key not in ("prompt", "answer", "split")}
    return Sample(entry["prompt"], entry["answer"], data), entry.get("split")


def _splits(samples: list[tuple[Sample, Split | None]], _: Path | None) -> Splits:
    if any(split for _, split in samples):
        parts: dict[str, list[Sample]] = {split: [] for split in get_args(Split)}
        for sample, split in samples:
            parts[split or "train"].append(sample)
        return Splits(**parts)
    groups = list(dict.fromkeys(sample.group for sample, _ in samples))
    random.Random(0).shuffle(groups)
    held_out = set(groups[: max(1, len(groups) // 5)])
    return Splits(
        train=[sample for sample, _ in samples if sample.group not in held_out],
        test=[sample for sample, _ in samples if sample.group in held_out],
    )
