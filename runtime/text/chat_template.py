"""A model's chat template: from a conversation to text as the model was trained on it."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..checkpoint.hf_config import read_json
from ..errors import ZweaveError, one_line

# Stands for the end of an assistant's message; no tokenizer or template knows it.
_MARK = "\ue000zweave-continue\ue001"


class ChatTemplate:
    """Renders messages with a Jinja template, sandboxed, with the globals that transformers gives it."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], source_for_tools: str | None = None
    ) -> None:
        """source_for_tools: the template of conversations with tools, if they have one of their own."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._special_tokens = dict(special_tokens)
        source_for_tools = source_for_tools or source
        try:
            self._template = environment.from_string(source)
            self._for_tools = environment.from_string(source_for_tools)
            self._takes_tools = "tools" in meta.find_undeclared_variables(environment.parse(source_for_tools))
        except jinja2.TemplateError as error:
            raise ZweaveError(f"the chat template is malformed: {one_line(error)}") from None

    @classmethod
    def from_directory(
        cls, directory: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
    ) -> "ChatTemplate | None":
        """The template of a model, looked for where transformers does; None if there is none."""
        sources = _sources(directory, tokenizer_config)
        source = sources.get("default")
        return None if source is None else cls(source, special_tokens, sources.get("tool_use"))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Text of a conversation up to where the answer begins; a final assistant message is left open.

        variables: what the template may read besides; those that it does not know have no effect.
        Raises ZweaveError with the template's own words if it refuses the messages, and for tools that it never reads.
        """
        if tools and not self._takes_tools:
            raise ZweaveError(
                "the model's chat template knows no tools: leave them out, or take another model"
            )
        if messages[-1]["role"] != "assistant":
            return self._render(messages, True, tools, variables)
        if messages[-1].get("content") is None:
            raise ZweaveError(
                "a final assistant message is continued, and this one has no content: "
                "give the results of its tool_calls in messages of the role tool"
            )
        final = {**messages[-1], "content": messages[-1]["content"] + _MARK}
        text, mark, _ = self._render([*messages[:-1], final], False, tools, variables).rpartition(_MARK)
        if not mark:
            raise ZweaveError("the chat template drops a final assistant message: it cannot be continued")
        return text

    def closing(self) -> str:
        """The text after an answer that is complete; empty if the template refuses a plain conversation."""
        messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": _MARK}]
        try:
            return self._render(messages, add_generation_prompt=False).partition(_MARK)[2]
        except ZweaveError:
            return ""

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        template = self._for_tools if tools else self._template
        given = {
            **self._special_tokens,
            **variables,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": tools or None,
            "documents": None,
        }
        try:
            return template.render(given)
        # A template may fail in any way that an expression can.
        except Exception as error:
            raise ZweaveError(f"the chat template refuses the messages: {one_line(error)}") from None


class _Generation(Extension):
    """Renders `{% generation %}` blocks, which mark the assistant's words for training, as plain text."""

    tags = {"generation"}  # noqa: RUF012  # declared so by jinja2

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _sources(directory: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """The templates by name: "default", "tool_use" for conversations with tools, and others that nobody asks for."""
    stored = tokenizer_config.get("chat_template")
    if stored is None and (directory / "chat_template.json").is_file():
        stored = read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(stored, list):
        named: dict[Any, Any] = {
            item.get("name"): item.get("template") for item in stored if isinstance(item, dict)
        }
    else:
        named = {} if stored is None else {"default": stored}
    files = {path.stem: path for path in (directory / "additional_chat_templates").glob("*.jinja")}
    if (directory / "chat_template.jinja").is_file():
        files["default"] = directory / "chat_template.jinja"
    if files:
        named = {name: _read(path) for name, path in files.items()}
    if not all(isinstance(named.get(name, ""), str) for name in ("default", "tool_use")):
        raise ZweaveError(f"{directory}: chat_template is neither a string nor a list with one named default")
    return named


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ZweaveError(f"{path} cannot be read as UTF-8 text: download the model again") from None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes characters for HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
