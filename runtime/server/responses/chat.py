"""Responses of /v1/chat/completions."""

from collections.abc import Iterator
from typing import Any

from ...request import Delta, Result
from ...text.tokenizer import Tokenizer
from ...text.tool_calls import parse_tool_calls
from .facts import finish_reason, head, how, tool_call, usage
from .logprobs import chat_logprobs
from .response import Response


class ChatResponse(Response):
    """The response to one body, whole or in chunks.

    has_tools: whether answers may hold calls of tools. Such an answer is one chunk, since only its end tells.
    """

    def __init__(
        self, model: str, tokenizer: Tokenizer, includes_usage: bool = False, has_tools: bool = False
    ) -> None:
        super().__init__(head("chat.completion.chunk", "chatcmpl", model), tokenizer, 1, includes_usage)
        self._has_tools = has_tools

    def whole(self, results: list[Result]) -> dict[str, Any]:
        """All choices."""
        choices = [self._choice(index, result) for index, result in enumerate(results)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage(results, 1)}

    def _choice(self, index: int, result: Result) -> dict[str, Any]:
        said, ending = self._said(result)
        logprobs = None if result.logprobs is None else chat_logprobs(self._tokenizer, result.logprobs)
        return {
            "index": index,
            "message": {"role": "assistant", "refusal": None, **said},
            "logprobs": logprobs,
            "finish_reason": ending,
            "zweave": how(result),
        }

    def _said(self, result: Result) -> tuple[dict[str, Any], str]:
        """Text and calls of tools of an answer, and why it ended."""
        if not self._has_tools:
            return {"content": result.text}, finish_reason(result)
        content, calls = parse_tool_calls(result.text)
        if not calls:
            return {"content": content}, finish_reason(result)
        return {
            "content": content,
            "tool_calls": [tool_call(*call) for call in enumerate(calls)],
        }, "tool_calls"

    def opening(self, index: int) -> dict[str, Any]:
        """The chunk that tells whose words follow."""
        return self._chunk(
            {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        )

    def chunks(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        """What a step added."""
        result = delta.result
        text = "" if self._has_tools else delta.text
        if not text and not delta.logprobs and result is None:
            return
        choice: dict[str, Any] = {
            "index": index,
            "delta": {"content": text} if text or result is None else {},
            "finish_reason": None if result is None else finish_reason(result),
        }
        if self._has_tools and result is not None:
            choice["delta"], choice["finish_reason"] = self._said(result)
        if delta.logprobs is not None:
            choice["logprobs"] = chat_logprobs(self._tokenizer, delta.logprobs)
        if result is not None:
            choice["zweave"] = how(result)
        yield self._chunk(choice)
