"""Responses of /v1/completions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...request import Delta, Result, TokenLogprob
from ...text.tokenizer import Tokenizer
from ..protocol.completion import CompletionBody
from .echo import Echo
from .facts import finish_reason, head, how, usage
from .logprobs import completion_logprobs
from .response import Response


class CompletionResponse(Response):
    """The response to one body, whole or in chunks."""

    def __init__(self, body: CompletionBody, tokenizer: Tokenizer) -> None:
        about = head("text_completion", "cmpl", body.model)
        super().__init__(about, tokenizer, len(body.prompts), body.includes_usage)
        self._echo = Echo(body, tokenizer) if body.echo else None
        self._offsets: dict[int, int] = {}

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """All choices."""
        choices = [self._choice(index, results) for index in range(len(results))]
        return {**self._head, "choices": choices, "usage": self._usage(results)}

    def _choice(self, index: int, results: Sequence[Result]) -> dict[str, Any]:
        result, text, prompt = self._shown(results[index]), "", None
        if self._echo is not None:
            text = self._echo.text(index)
            prompt = results[index - index % self._echo.each]
        logprobs = None if result.logprobs is None else self._logprobs(index, result.logprobs, prompt)
        return self._part(index, text + result.text, logprobs) | self._ending(result)

    def usage(self, results: Sequence[Result]) -> dict[str, Any]:
        """The chunk that tells the tokens used."""
        return {**self._head, "choices": [], "usage": self._usage(results)}

    def _usage(self, results: Sequence[Result]) -> dict[str, Any]:
        return usage([self._shown(result) for result in results], self._prompts)

    def _shown(self, result: Result) -> Result:
        return result if self._echo is None else self._echo.shown(result)

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk of an echoed prompt, unless its log-probabilities are still to come."""
        if self._echo is None or self._echo.has_logprobs:
            return None
        return self._chunk(self._part(index, self._echo.text(index)))

    def chunks(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        """What a step added."""
        if self._echo is not None:
            if self._echo.has_logprobs and delta.prompt_logprobs is not None:
                for choice in range(index, index + self._echo.each):
                    of_prompt = self._logprobs(choice, [], delta)
                    yield self._chunk(self._part(choice, self._echo.text(choice), of_prompt))
            delta = self._echo.shown_delta(delta)
        logprobs = None if delta.logprobs is None else self._logprobs(index, delta.logprobs)
        part = self._part(index, delta.text, logprobs)
        yield self._chunk(part if delta.result is None else part | self._ending(self._shown(delta.result)))

    def _part(self, index: int, text: str, logprobs: Any = None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def _ending(self, result: Result) -> dict[str, Any]:
        if self._echo is not None and self._echo.has_logprobs:
            result = replace(result, prompt_logprobs=None)  # they stand before the answer's
        return {"finish_reason": finish_reason(result), "zweave": how(result)}

    def _logprobs(
        self, index: int, tokens: Sequence[TokenLogprob], prompt: Result | Delta | None = None
    ) -> dict[str, Any]:
        """Those of the next tokens of a choice, after those of a prompt."""
        first = None
        if prompt is not None and prompt.prompt_logprobs and prompt.prompt_token_ids:
            first = prompt.prompt_token_ids[0]
            tokens = [*(token for token in prompt.prompt_logprobs if token is not None), *tokens]
        offset = self._offsets.get(index, 0)
        logprobs = completion_logprobs(self._tokenizer, tokens, offset, first)
        self._offsets[index] = offset + sum(map(len, logprobs["tokens"]))
        return logprobs
