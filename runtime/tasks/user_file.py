"""A user's own task: a JSONL file of prompts and answers, or a Python file that makes a Task."""

import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from ..errors import ZweaveError, shortened
from ..io.json_text import parse_json
from ..io.python_file import python_object
from ..validation import has_lone_surrogate
from . import prompts
from .task import Sample, Split, Splits, Task, exact, says_label

MAX_TOKENS = 256
_KEYS = ("prompt", "messages", "answer", "split")
_ROLES = ("system", "user", "assistant")


def python_task(path: Path) -> Task:
    """The Task that a Python file calls `task`; ZweaveError with the file's own error if it fails."""
    task = python_object(path, "task")
    if not isinstance(task, Task):
        raise ZweaveError(f"{path} defines no task: write task = zweave.tasks.Task(...)")
    return task


def jsonl_task(path: Path) -> Task:
    """A task of the lines {"prompt" or "messages", "answer"}, each with an optional "split"; other keys go to
    `Sample.data`.

    The first line may be {"labels": [...]} alone: the answers are then chosen among those. Without any "split" a
    fifth of the prompts is held out. An answer is right when it is the sample's but for white
    space; among labels, when it begins with the sample's.
    Raises ZweaveError with the line, the key and the reason where a line is anything else.
    """
    labels: tuple[str, ...] = ()
    samples: list[tuple[Sample, Split | None]] = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            entry = _object(line)
            if "labels" in entry:
                if labels or samples:
                    raise ZweaveError('only the first line may give the "labels"')
                labels = _labels(entry)
            else:
                samples.append(_sample(entry))
        except ZweaveError as error:
            raise ZweaveError(f"{path}, line {number}: {error}") from None
    if not samples:
        raise ZweaveError(f'{path} has no samples: write one {{"prompt": ..., "answer": ...}} a line')
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
        judge=says_label(labels) if labels else exact,
    )


def _lines(path: Path) -> list[str]:
    """Lines of UTF-8 text, ended by LF or CRLF, without a byte order mark."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ZweaveError(f"{path} cannot be read: {error.strerror}") from None
    # ASCII in UTF-16 without a byte order mark is UTF-8 too, with zeros between the letters.
    text, zero, _ = raw.partition(b"\0")
    try:
        lines = text.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        text, zero = text[: error.start], b"\0"
    if zero:
        number = text.count(b"\n") + 1
        raise ZweaveError(f"{path}, line {number} is not UTF-8 text: save the file as UTF-8")
    return [line.removesuffix("\r") for line in lines]


def _object(line: str) -> dict[str, Any]:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise ZweaveError(f"is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise ZweaveError(f"is {shortened(entry)}, and must be a JSON object")
    return entry


def _labels(entry: Mapping[str, Any]) -> tuple[str, ...]:
    labels = entry["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise ZweaveError(f'"labels" is {shortened(labels)}, and must be a list of texts')
    for label in labels:
        _check_characters("labels", label)
    if len(entry) > 1:
        raise ZweaveError('"labels" must stand in a line of their own')
    return tuple(labels)


def _sample(entry: Mapping[str, Any]) -> tuple[Sample, Split | None]:
    if ("prompt" in entry) == ("messages" in entry):
        raise ZweaveError('must have a "prompt" or "messages", one of the two')
    prompt = _text(entry, "prompt") if "prompt" in entry else _conversation(entry["messages"])
    answer = _text(entry, "answer")
    if not answer.strip():
        raise ZweaveError('"answer" is empty')
    split = entry.get("split")
    if split is not None and split not in get_args(Split):
        raise ZweaveError(f'"split" is {shortened(split)}, and must be one of {", ".join(get_args(Split))}')
    _check_group(entry.get("group"))
    data = {key: value for key, value in entry.items() if key not in _KEYS}
    return Sample(prompt, answer, data), split


def _check_group(group: Any) -> None:
    """A name or a number; None, as a table's empty cell is written, counts as absent."""
    is_name = isinstance(group, str | int | float) and not isinstance(group, bool) and group == group
    if group is not None and not is_name:
        raise ZweaveError(f'"group" is {shortened(group)}, and must be text or a number, or be left out')


def _text(entry: Mapping[str, Any], key: str) -> str:
    if key not in entry:
        raise ZweaveError(f'has no "{key}"')
    value = entry[key]
    if not isinstance(value, str):
        quoted = f': write "{value}"' if isinstance(value, int | float) else ""
        raise ZweaveError(f'"{key}" is {shortened(value)}, and must be text{quoted}')
    if not value:
        raise ZweaveError(f'"{key}" is empty')
    _check_characters(key, value)
    return value


def _conversation(messages: Any) -> str:
    """Messages as the text of a prompt."""
    if not isinstance(messages, list) or not messages:
        raise ZweaveError(f'"messages" is {shortened(messages)}, and must be a list of {{"role", "content"}}')
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(k), str) for k in ("role", "content")
        ):
            raise ZweaveError(
                f'"messages" holds {shortened(message)}, and must hold {{"role", "content"}}, texts'
            )
        if message["role"] not in _ROLES:
            raise ZweaveError(
                f'"messages" has the role {shortened(message["role"])}, and must have {", ".join(_ROLES)}'
            )
    if messages[0]["role"] == "assistant" and len(messages) == 1:
        raise ZweaveError('"messages" holds nothing but the beginning of the answer')
    text = prompts.conversation(messages)
    _check_characters("messages", text)
    return text


def _check_characters(key: str, text: str) -> None:
    if has_lone_surrogate(text):
        raise ZweaveError(f'"{key}" holds a lone surrogate, which is no character: remove it')


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
