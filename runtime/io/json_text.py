"""JSON that others wrote."""

import json
from typing import Any

from ..errors import ZweaveError, one_line, shortened


def parse_json(text: str, unique_keys: bool = True) -> Any:
    """What a text holds; ValueError with a short reason for what is no JSON, and for what is nested too deeply.

    unique_keys: a key that an object has twice is an error; else its last value counts, as in transformers.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def plain_json(name: str, value: object) -> Any:
    """A copy of a value as JSON would give it back; ZweaveError with its name for what JSON cannot hold."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ZweaveError(f"{name} must hold what JSON can: {one_line(error)}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shortened(twice)} stands twice in one object: leave one out")
    return found
