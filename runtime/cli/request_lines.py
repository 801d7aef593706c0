"""Requests from text: one prompt or one JSON object on each line."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import ZweaveError
from ..io.json_text import parse_json
from ..request import Request, Sampling

REQUEST_KEYS = {field.name for field in dataclasses.fields(Request) if field.init} - {"dispatcher"}
SAMPLING_KEYS = {field.name for field in dataclasses.fields(Sampling)}


def numbered(lines: Iterable[str], source: str) -> Iterator[tuple[str, str]]:
    """Yields the position of each line, for messages, and its text; empty lines are left out."""
    try:
        for number, line in enumerate(lines, 1):
            text = line.rstrip("\n").removeprefix("\ufeff" if number == 1 else "")
            if text.strip():
                yield f"{source}, line {number}", text
    except UnicodeDecodeError as error:
        raise ZweaveError(f"{source} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def plain_request(prompt: str, chat: bool, defaults: dict[str, Any]) -> Request:
    if chat:
        return Request(messages=[{"role": "user", "content": prompt}], **defaults)
    return Request(prompt, **defaults)


def json_request(line: str, defaults: dict[str, Any]) -> Request:
    """A request from a JSON object, with `defaults` for missing fields; ZweaveError says what is wrong."""
    try:
        fields = parse_json(line)
        if not isinstance(fields, dict):
            raise ZweaveError("a line must be a JSON object")
        _check_keys("field", fields, REQUEST_KEYS)
        if "sampling" in fields:
            if not isinstance(fields["sampling"], dict):
                raise ZweaveError('sampling must be an object such as {"temperature": 0.7, "seed": 1}')
            _check_keys("field of sampling", fields["sampling"], SAMPLING_KEYS)
            fields["sampling"] = Sampling(**fields["sampling"])
        return Request(**{**defaults, **fields})
    except ValueError as error:
        raise ZweaveError(f"not JSON: {error}") from None
    except TypeError as error:
        raise ZweaveError(str(error)) from None


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts the place that a ZweaveError is about before what it says."""
    try:
        yield
    except ZweaveError as error:
        raise ZweaveError(f"{where}: {error}") from None


def shown_prompt(request: Request) -> str:
    """The prompt as the user sees it: its text, or that of the last message."""
    return str(request.messages[-1]["content"] if request.messages else request.prompt)


def open_text(path: str, mode: str) -> IO[str]:
    """A UTF-8 file; what is written and has no place in UTF-8 is escaped. ZweaveError if it cannot be opened."""
    try:
        errors = "strict" if mode == "r" else "backslashreplace"
        return Path(path).open(mode, encoding="utf-8", errors=errors)
    except OSError as error:
        raise ZweaveError(f"cannot open {path}: {error.strerror}") from None


def _check_keys(what: str, fields: Iterable[str], known: Collection[str]) -> None:
    unknown = set(fields) - set(known)
    if unknown:
        raise ZweaveError(f"unknown {what} {sorted(unknown)[0]!r}: use {', '.join(sorted(known))}")
