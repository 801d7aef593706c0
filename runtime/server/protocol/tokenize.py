"""Bodies of /tokenize and /detokenize."""

from typing import Any

from .body import Body
from .chat import ChatMessage


class TokenizeBody(Body):
    """prompt or messages: the text, or a conversation for the chat template."""

    model: Any = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None


class DetokenizeBody(Body):
    model: Any = None
    tokens: list[int]
