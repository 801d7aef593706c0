"""What a chat template is given: messages, tools and variables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ZweaveError, shortened
from ..io.json_text import parse_json, plain_json

ROLES = ("system", "user", "assistant", "tool")
_RESERVED = (
    "messages",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
)


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with the arguments of tool calls as objects.

    OpenAI's clients send arguments as the text of a JSON object; templates write the object down.
    Raises ZweaveError for what is no conversation.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise ZweaveError('messages must be a non-empty list of {"role": ..., "content": ...}')
    return [_plain_message(message) for message in messages]


def plain_tools(tools: object) -> list[dict[str, Any]]:
    """A copy of tools; ZweaveError for what is no list of objects."""
    plain = plain_json("tools", tools)
    if not isinstance(plain, list) or not all(isinstance(tool, dict) for tool in plain):
        raise ZweaveError(f"tools must be a list of JSON schemas of functions, not {shortened(tools)}")
    return plain


def plain_template_kwargs(variables: object) -> dict[str, Any]:
    """A copy of a template's further variables; ZweaveError for what is no object, and for names that are taken."""
    plain = plain_json("chat_template_kwargs", variables)
    if not isinstance(plain, dict):
        raise ZweaveError(f"chat_template_kwargs must be an object, not {shortened(variables)}")
    if taken := [name for name in _RESERVED if name in plain]:
        raise ZweaveError(f"chat_template_kwargs must not hold {taken[0]!r}: the request sets it")
    return plain


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A value of JSON with a change made to every text in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): each_text(item, change) for key, item in value.items()}
    return [each_text(item, change) for item in value] if isinstance(value, list | tuple) else value


def _plain_message(message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not _has_content(message):
        raise ZweaveError(f'a message must be {{"role": ..., "content": text}}, not {shortened(message)}')
    if message.get("role") not in ROLES:
        raise ZweaveError(f"a message's role must be one of {', '.join(ROLES)}, not {message.get('role')!r}")
    plain = dict(message)
    calls = plain.pop("tool_calls", None)
    if calls:
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise ZweaveError(f"a message's tool_calls must be a list, not {shortened(calls)}")
        plain["tool_calls"] = [_plain_call(call) for call in calls]
    return plain


def _has_content(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    may_lack = message.get("role") == "tool" or bool(message.get("tool_calls"))
    return isinstance(content, str) or (content is None and may_lack)


def _plain_call(call: object) -> dict[str, Any]:
    """A call {"function": {"name", "arguments"}, ...}; some models' templates take {"name", "arguments"} alone."""
    if not isinstance(call, Mapping):
        raise ZweaveError(f"a tool call must be an object, not {shortened(call)}")
    if "function" in call:
        return {**call, "function": _plain_call(call["function"])}
    arguments = call.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except ValueError as error:
            raise ZweaveError(f"a tool call's arguments are no JSON: {error}") from None
    if not isinstance(arguments, Mapping):
        raise ZweaveError(f"a tool call's arguments must be an object, not {shortened(arguments)}")
    return {**call, "arguments": dict(arguments)}
