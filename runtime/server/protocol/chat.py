"""The body of /v1/chat/completions."""

from typing import Any, Literal

from .body import Body
from .generation import GenerationBody


class TextPart(Body):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """A turn of the conversation."""

    role: str
    content: str | list[TextPart] | None = None
    name: Any = None

    def plain(self) -> dict[str, str]:
        """The message with its content as one text."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatBody(GenerationBody):
    """messages: the conversation; an assistant's message at its end is continued."""

    messages: list[ChatMessage]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
