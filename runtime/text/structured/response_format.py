"""The form that an answer must have."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ...errors import ZweaveError, one_line, shortened
from ...io.json_text import parse_json
from ...validation import has_lone_surrogate

# What compiling costs grows with these two, steeply with the nesting.
MAX_CHARACTERS = 100_000
MAX_NESTING = 64

_EXAMPLES = '{"type": "json_schema", "json_schema": {"schema": {...}}} or {"regex": "[0-9]+"}'


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The form that an answer must have. Exactly one field is given.

    json_schema: a JSON value that this schema, a dict or its text, describes; an object's keys come in its order.
    regex: a text that matches this as a whole; look-around and back-references are refused.
    choice: one of these texts.
    grammar: a text of this grammar, in the syntax of llguidance's Lark or of llama.cpp's GBNF.
    json_object: any JSON object.
    """

    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.json_object, bool):
            raise ZweaveError(f"json_object must be True or False, not {shortened(self.json_object)}")
        given = [field.name for field in fields(self) if getattr(self, field.name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(field.name for field in fields(self))
            raise ZweaveError(
                f"a response_format takes exactly one of {names}, not {' and '.join(given) or 'none'}"
            )
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ZweaveError(f"{name} must be a non-empty text, not {shortened(value)}")
        if self.choice is not None and not _is_texts(self.choice):
            raise ZweaveError(
                f"choice must be a non-empty list of non-empty texts, not {shortened(self.choice)}"
            )
        if has_lone_surrogate(self.source):
            raise ZweaveError(f"the {given[0]} holds a lone surrogate, which is no character: remove it")
        if len(self.source) > MAX_CHARACTERS:
            raise ZweaveError(
                f"the {given[0]} has {len(self.source)} characters: at most {MAX_CHARACTERS} are compiled"
            )

    @classmethod
    def parse(cls, value: object) -> "ResponseFormat | None":
        """A format from its fields, or from OpenAI's `response_format`; None for none, and for a plain text."""
        if value is None or isinstance(value, ResponseFormat):
            return value
        if not isinstance(value, Mapping):
            raise ZweaveError(
                f"response_format must be a zweave.ResponseFormat or an object such as {_EXAMPLES}, "
                f"not {shortened(value)}"
            )
        if "type" in value:
            return cls._from_openai(value)
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in value if key not in known]:
            raise ZweaveError(
                f"unknown field of response_format {shortened(unknown[0])}: use {', '.join(known)}"
            )
        return cls(**value)

    @classmethod
    def _from_openai(cls, value: Mapping[str, Any]) -> "ResponseFormat | None":
        kind = value["type"]
        if kind == "text":
            return None
        if kind == "json_object":
            return cls(json_object=True)
        if kind != "json_schema":
            raise ZweaveError(
                f"a response_format's type must be text, json_object or json_schema, not {shortened(kind)}"
            )
        named = value.get("json_schema")
        schema = named.get("schema") if isinstance(named, Mapping) else None
        if schema is None:
            raise ZweaveError(
                'a response_format of the type json_schema needs {"json_schema": {"schema": {...}}}'
            )
        return cls(json_schema=schema)

    @property
    def source(self) -> str:
        """What is compiled: the text of the schema, regex or grammar, and choices as a JSON list."""
        if self.json_object:
            return '{"type":"object"}'
        if self.choice is not None:
            return json.dumps(list(self.choice), ensure_ascii=False)
        if self.json_schema is not None:
            return _schema_text(self.json_schema)
        return self.regex or self.grammar or ""


def _is_texts(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        return False
    return all(isinstance(text, str) and text for text in value)


def _schema_text(schema: object) -> str:
    """A schema as JSON; ZweaveError for what is none."""
    try:
        value = parse_json(schema) if isinstance(schema, str) else schema
        if not isinstance(value, Mapping):
            raise ZweaveError(f"json_schema must be a JSON object or its text, not {shortened(schema)}")
        if _nesting(value) > MAX_NESTING:
            raise ZweaveError(f"json_schema is nested more than {MAX_NESTING} levels deep")
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ZweaveError(f"json_schema is no JSON: {one_line(error)}") from None


def _nesting(value: Any) -> int:
    """Levels of lists and objects, counted up to one more than are allowed."""
    levels, inner = 0, [value]
    while inner and levels <= MAX_NESTING:
        levels += 1
        inner = [
            child
            for parent in inner
            for child in (parent.values() if isinstance(parent, Mapping) else parent)
            if isinstance(child, Mapping | list | tuple)
        ]
    return levels
