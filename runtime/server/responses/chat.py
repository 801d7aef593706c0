"""Responses of /v1/chat/completions."""

from typing import Any

from ...request import Delta, Result
from ...text.tokenizer import Tokenizer
from .facts import finish_reason, head, how, usage
from .logprobs import chat_logprobs


class ChatResponse:
    """The response to one body, whole or in chunks."""

    def __init__(self, model: str, tokenizer: Tokenizer, includes_usage: bool = False) -> None:
        self._model, self._tokenizer, self._includes_usage = model, tokenizer, includes_usage
        self._head = head("chat.completion.chunk", "chatcmpl", model)

    def whole(self, results: list[Result]) -> dict[str, Any]:
        """All choices."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": result.text, "refusal": None},
                "logprobs": None
                if result.logprobs is None
                else chat_logprobs(self._tokenizer, result.logprobs),
                "finish_reason": finish_reason(result),
                "zweave": how(result),
            }
            for index, result in enumerate(results)
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage(results, 1)}

    def opening(self, index: int) -> dict[str, Any]:
        """The chunk that tells whose words follow."""
        return self._chunk(
            {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        )

    def chunk(self, index: int, delta: Delta) -> dict[str, Any] | None:
        """What a step added."""
        result = delta.result
        if not delta.text and not delta.logprobs and result is None:
            return None
        choice: dict[str, Any] = {
            "index": index,
            "delta": {"content": delta.text} if delta.text or result is None else {},
            "finish_reason": None if result is None else finish_reason(result),
        }
        if delta.logprobs is not None:
            choice["logprobs"] = chat_logprobs(self._tokenizer, delta.logprobs)
        if result is not None:
            choice["zweave"] = how(result)
        return self._chunk(choice)

    def usage(self, results: list[Result]) -> dict[str, Any]:
        """The chunk that tells the tokens used."""
        return {**self._head, "choices": [], "usage": usage(results, 1)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        nothing = {"usage": None} if self._includes_usage else {}
        return {**self._head, "choices": [choice], **nothing}
