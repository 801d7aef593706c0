"""Responses of /v1/completions."""

from typing import Any

from ...request import Delta, Result
from ...text.tokenizer import Tokenizer
from .facts import finish_reason, head, how, usage
from .logprobs import completion_logprobs


class CompletionResponse:
    """The response to one body, whole or in chunks.

    prompts: how many the body has.
    """

    def __init__(
        self, model: str, tokenizer: Tokenizer, prompts: int = 1, includes_usage: bool = False
    ) -> None:
        self._tokenizer, self._prompts, self._includes_usage = tokenizer, prompts, includes_usage
        self._head = head("text_completion", "cmpl", model)
        self._shown: dict[int, int] = {}

    def whole(self, results: list[Result]) -> dict[str, Any]:
        """All choices."""
        choices = [
            {
                "index": index,
                "text": result.text,
                "logprobs": None
                if result.logprobs is None
                else completion_logprobs(self._tokenizer, result.logprobs),
                "finish_reason": finish_reason(result),
                "zweave": how(result),
            }
            for index, result in enumerate(results)
        ]
        return {**self._head, "choices": choices, "usage": usage(results, self._prompts)}

    def opening(self, index: int) -> None:
        """Completions open without a chunk."""

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """What a step added."""
        result = delta.result
        choice: dict[str, Any] = {
            "index": index,
            "text": delta.text,
            "logprobs": None,
            "finish_reason": None if result is None else finish_reason(result),
        }
        if delta.logprobs is not None:
            offset = self._shown.get(index, 0)
            logprobs = completion_logprobs(self._tokenizer, delta.logprobs, offset)
            choice["logprobs"] = logprobs
            self._shown[index] = offset + sum(map(len, logprobs["tokens"]))
        if result is not None:
            choice["zweave"] = how(result)
        nothing = {"usage": None} if self._includes_usage else {}
        return {**self._head, "choices": [choice], **nothing}

    def usage(self, results: list[Result]) -> dict[str, Any]:
        """The chunk that tells the tokens used."""
        return {**self._head, "choices": [], "usage": usage(results, self._prompts)}
