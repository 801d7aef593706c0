"""Calls of tools in an answer's text, as the Hermes models write them, and Qwen and SmolLM2 after them."""

import json
import re
from dataclasses import dataclass

from ..io.json_text import parse_json

_START = "<tool_call>"
# An answer that was cut off may lack the end.
_CALL = re.compile(rf"{_START}(.*?)(?:</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool's name, and the text of a JSON object with its arguments."""

    name: str
    arguments: str


def parse_tool_calls(text: str) -> tuple[str | None, list[ToolCall]]:
    """What an answer says before its first `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, and its calls.

    None for an answer that says nothing before them. A text with a call that is malformed has no calls: it is all
    content.
    """
    if _START not in text:
        return text, []
    try:
        calls = [_call(parse_json(written)) for written in _CALL.findall(text)]
    except ValueError:
        return text, []
    return text[: text.index(_START)] or None, calls


def _call(value: object) -> ToolCall:
    """ValueError for what is no call."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or "arguments" not in value:
        raise ValueError("a call needs a name and arguments")
    return ToolCall(value["name"], json.dumps(value["arguments"], ensure_ascii=False))
