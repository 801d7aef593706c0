"""What `zweave train --adapter lora` writes beside PEFT's files: when a LoRA acts, and the words it was trained on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from ..errors import ZweaveError, shortened
from ..io.json_text import parse_json
from ..names import Scope
from ..text.prompt_template import PromptTemplate
from ..validation import has_lone_surrogate

LORA_RECORD = "zweave.json"


@dataclass(frozen=True, slots=True)
class LoraRecord:
    """What PEFT's own files do not say.

    scope: "always", or "after_prompt", which acts only from the last header of the chat template on.
    description: a text for people.
    training: how it was made.
    prompt_template: the prompt that it was trained on; None if that is not known.
    """

    scope: Scope = "always"
    description: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    prompt_template: PromptTemplate | None = None

    @classmethod
    def read(cls, directory: Path) -> "LoraRecord | None":
        """The record in an adapter's directory, None if there is none; ZweaveError for one that is damaged."""
        file = directory / LORA_RECORD
        if not file.exists():
            return None
        try:
            return cls._of(parse_json(file.read_text("utf-8")))
        except (OSError, ValueError):
            why = "is not a JSON object"
        except ZweaveError as error:
            why = f"is damaged: {error}"
        raise ZweaveError(
            f"{LORA_RECORD} {why}: train the adapter again, or remove the file to serve PEFT's alone"
        )

    @classmethod
    def _of(cls, fields: object) -> "LoraRecord":
        if not isinstance(fields, dict):
            raise ValueError
        scope, description = fields.get("scope"), fields.get("description", "")
        training, template = fields.get("training", {}), fields.get("prompt_template")
        if scope not in get_args(Scope):
            raise ZweaveError(
                f"its scope must be one of {', '.join(get_args(Scope))}, not {shortened(scope)}"
            )
        if not isinstance(description, str) or has_lone_surrogate(description):
            raise ZweaveError("its description is no text")
        if not isinstance(training, dict):
            raise ZweaveError("its training is not a JSON object")
        return cls(
            scope=cast(Scope, scope),
            description=description,
            training=training,
            prompt_template=None if template is None else PromptTemplate.from_json(json.dumps(template)),
        )
