"""A model's chat template: from a conversation to text as the model was trained on it."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
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

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ZweaveError(f"the chat template is malformed: {one_line(error)}") from None

    @classmethod
    def from_directory(
        cls, directory: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
    ) -> "ChatTemplate | None":
        """The template of a model, looked for where transformers does; None if there is none."""
        source = _source(directory, tokenizer_config)
        return None if source is None else cls(source, special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Text of a conversation up to where the answer begins; a final assistant message is left open.

        Raises ZweaveError with the template's own words if it refuses the messages.
        """
        if messages[-1]["role"] != "assistant":
            return self._render(messages, add_generation_prompt=True)
        final = {**messages[-1], "content": messages[-1]["content"] + _MARK}
        text, mark, _ = self._render([*messages[:-1], final], add_generation_prompt=False).rpartition(_MARK)
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

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        # A template may fail in any way that an expression can.
        except Exception as error:
            raise ZweaveError(f"the chat template refuses the messages: {one_line(error)}") from None


class _Generation(Extension):
    """Renders `{% generation %}` blocks, which mark the assistant's words for training, as plain text."""

    tags = {"generation"}  # noqa: RUF012  # declared so by jinja2

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _source(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise ZweaveError(f"{path} cannot be read as UTF-8 text: download the model again") from None
    stored = tokenizer_config.get("chat_template")
    if stored is None and (directory / "chat_template.json").is_file():
        stored = read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(stored, list):
        named = {item.get("name"): item.get("template") for item in stored if isinstance(item, dict)}
        stored = named.get("default")
    if stored is not None and not isinstance(stored, str):
        raise ZweaveError(f"{directory}: chat_template is neither a string nor a list with one named default")
    return stored


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
