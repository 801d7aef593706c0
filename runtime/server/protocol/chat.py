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
    refusal: None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """The message as `Request.messages` takes it, its content as one text."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        calls = {"tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id, "name": self.name}
        return {"role": role, "content": content} | {key: value for key, value in calls.items() if value}


class ChatBody(GenerationBody):
    """messages: the conversation; an assistant's message at its end is continued.

    tools: functions that the model may call, for its chat template; "none" as `tool_choice` leaves them out.
    """

    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model may call, None for none."""
        return None if self.tool_choice == "none" else self.tools or None
