"""Everyday prompts of many kinds, written for zweave: examples of what belongs to none of the tasks."""

import json
from importlib.resources import files


def everyday_prompts() -> list[str]:
    """User turns, some of several lines, in a fixed order."""
    text = files(__package__).joinpath("data/everyday.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
