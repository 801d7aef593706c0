"""JSON that others wrote."""

import codecs
import json
from pathlib import Path
from typing import Any

from ..errors import ZweaveError, one_line, shortened


def parse_json(text: str, unique_keys: bool = True) -> Any:
    """What a text holds; ValueError with a short reason for what is no JSON, and for what is nested too deeply.

    A byte order mark, with which some editors begin a file, is skipped; json.loads refuses it.

    unique_keys: a key that an object has twice is an error; else its last value counts, as in transformers.
    """
    try:
        return json.loads(
            text.removeprefix("\ufeff"),
            parse_int=_integer,
            object_pairs_hook=_unique if unique_keys else None,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def plain_json(name: str, value: object) -> Any:
    """A copy of a value as JSON would give it back; ZweaveError with its name for what JSON cannot hold."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ZweaveError(f"{name} must hold what JSON can: {one_line(error)}") from None


def has_byte_order_mark(path: Path) -> bool:
    """Whether a file begins with one, which readers other than `parse_json` refuse."""
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        # Its own message is about a setting of Python's.
        raise ValueError(f"the number {digits[:20]}... of {len(digits)} digits is too large") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shortened(key)} stands twice in one object: leave one out")
        found[key] = value
    return found
