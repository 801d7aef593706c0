"""Prompt templates: the words around a text that an expert was trained on, and how its answers end."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ZweaveError, shortened
from ..io.json_text import parse_json
from ..validation import check_flag, has_lone_surrogate, is_integer
from . import chatml
from .labels import label_said
from .tokenizer import Tokenizer

VERSION = 1
PLACE = "{text}"
_LISTS = ("labels", "stop")


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The prompt that an expert was trained on, with a place for a text.

    user: the user's turn, which holds {text} once.
    opening: the first words of the answer, which the model continues; {text} stands for the text here too.
    labels: the answers to choose from, each with the space that it begins with; empty for free answers.
    max_tokens: of an answer, its end token included.
    stop: strings before which an answer ends.
    chat: whether they are turns of a chat; if not, the prompt is `user` and `opening` one after the other.
    Raises ZweaveError for what cannot be a template.
    """

    user: str = PLACE
    opening: str = ""
    labels: tuple[str, ...] = ()
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    chat: bool = True

    def __post_init__(self) -> None:
        check_flag("a prompt template's chat", self.chat)
        if not (isinstance(self.user, str) and self.user.count(PLACE) == 1):
            raise ZweaveError(
                f"a prompt template's user must hold {PLACE} once, not be {shortened(self.user)}"
            )
        if not isinstance(self.opening, str):
            raise ZweaveError(f"a prompt template's opening must be text, not {shortened(self.opening)}")
        for name in _LISTS:
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(isinstance(one, str) and one for one in values):
                raise ZweaveError(f"a prompt template's {name} must be texts, not {shortened(values)}")
        if any(map(has_lone_surrogate, (self.user, self.opening, *self.labels, *self.stop))):
            raise ZweaveError("a prompt template holds a lone surrogate, which is no character: remove it")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ZweaveError("a prompt template's labels must be two or more, all different")
        if not (is_integer(self.max_tokens) and self.max_tokens >= 1):
            raise ZweaveError(f"a prompt template's max_tokens must be at least 1, not {self.max_tokens!r}")

    def fill(self, text: str) -> tuple[str, str]:
        """The user's turn with the text in its place, and the opening of the answer."""
        return self.user.replace(PLACE, text), self.opening.replace(PLACE, text)

    def bare(self, text: str) -> str:
        """The text without white space around it, and without the template's words where it brings them along.

        So "What is 1 + 2?" is asked like "1 + 2". The words are all of the template's, or those in its
        line alone: a part of them may be the text's own.
        """
        before, after = self.user.split(PLACE)
        if not (self.chat or before or after):
            return text
        bare = whole = text.strip()
        for words in (before, before.rpartition("\n")[2]):
            if words and bare.lower().startswith(words.lower()):
                bare = bare[len(words) :]
                break
        for words in (after, after.partition("\n")[0]):
            if words and bare.lower().endswith(words.lower()):
                bare = bare[: -len(words)]
                break
        return bare.strip() or whole

    def prompt(self, text: str) -> str:
        """The whole prompt of a text as it was in training, a chat in ChatML."""
        user, opening = self.fill(self.bare(text))
        return chatml.chat(user, opening) if self.chat else f"{user}{opening}"

    def ask(self, text: str) -> "Question":
        """What a text becomes in the template's words."""
        return Question(self, "\n".join(part for part in self.fill(self.bare(text)) if part))

    def ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Token ids of the whole prompt of a text, in the model's own chat template."""
        if not self.chat:
            return tokenizer.encode(self.prompt(text))
        return chatml.chat_ids(tokenizer, *self.fill(self.bare(text)))

    def is_answered_by(self, answer: str) -> bool:
        """Whether an answer is one of the labels, no other begins with it, and so nothing is left to say."""
        said = answer.strip()
        return [label.strip() for label in self.labels if label.strip().startswith(said)] == [said]

    def label_of(self, answer: str) -> str | None:
        """The label that an answer begins with, without white space around it; None if it is none of them."""
        found = label_said(answer, self.labels)
        return None if found is None else found.strip()

    def to_json(self) -> str:
        """The template as an expert file holds it."""
        return json.dumps({"version": VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "PromptTemplate":
        """Reads and checks what `to_json` wrote; ZweaveError for anything else, and for a newer version."""
        try:
            fields = parse_json(text)
        except ValueError as error:
            raise ZweaveError(f"the prompt template is not a JSON object ({error})") from None
        if not isinstance(fields, dict):
            raise ZweaveError("the prompt template is not a JSON object")
        version = fields.pop("version", None)
        if version != VERSION:
            raise ZweaveError(
                f"the prompt template's version is {shortened(version)}, this zweave reads {VERSION}"
            )
        return cls(**_known(fields))


@dataclass(frozen=True, slots=True)
class Question:
    """A text in the words of a template.

    text: for people: the user's words, and the opening of the answer in a line of its own.
    """

    template: PromptTemplate
    text: str


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with lists as tuples; ZweaveError for one that the version does not have."""
    unknown = fields.keys() - PromptTemplate.__dataclass_fields__.keys()
    if unknown:
        raise ZweaveError(f"the prompt template has an unknown field {sorted(unknown)[0]!r}")
    return {
        name: tuple(value) if name in _LISTS and isinstance(value, list) else value
        for name, value in fields.items()
    }
