"""A sentence that says what to do with a text, in the place of an expert's name."""

from dataclasses import dataclass

from ..errors import ZweaveError
from ..validation import has_lone_surrogate

MOST_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Description:
    """What an expert is to be made of; ZweaveError for what can be none."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise ZweaveError("a description is a text that says what to do with a prompt's text: give one")
        if len(self.text) > MOST_CHARACTERS:
            raise ZweaveError(
                f"a description has at most {MOST_CHARACTERS} characters, not {len(self.text)}: say it in fewer words"
            )
        if has_lone_surrogate(self.text):
            raise ZweaveError("the description holds a lone surrogate, which is no character: remove it")
