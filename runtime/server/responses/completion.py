"""Responses of /v1/completions."""

from typing import Any

from ...request import Delta, Result
from ...text.tokenizer import Tokenizer
from .facts import finish_reason, head, how, usage
from .logprobs import completion_logprobs
from .response import Response


class CompletionResponse(Response):
    """The response to one body, whole or in chunks.

    prompts: how many the body has.
    """

    def __init__(
        self, model: str, tokenizer: Tokenizer, prompts: int = 1, includes_usage: bool = False
    ) -> None:
        super().__init__(head("text_completion", "cmpl", model), tokenizer, prompts, includes_usage)
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
        return self._chunk(choice)
