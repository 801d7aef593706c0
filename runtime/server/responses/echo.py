"""Prompts that stand before their answers."""

from dataclasses import replace

from ...request import Delta, Result
from ...text.tokenizer import Tokenizer
from ..protocol.completion import CompletionBody


class Echo:
    """What a body with `echo` wants to see of its prompts.

    each: answers to a prompt.
    has_logprobs: whether the prompts' log-probabilities stand before the answers', too.
    """

    def __init__(self, body: CompletionBody, tokenizer: Tokenizer) -> None:
        self.each = body.n or 1
        self.has_logprobs = body.logprobs is not None
        self._is_alone = body.is_echo_alone
        self._texts = [
            prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special=False)
            for prompt in body.prompts
        ]

    def text(self, index: int) -> str:
        """The prompt before a choice, as the body has it."""
        return self._texts[index // self.each]

    def shown(self, result: Result) -> Result:
        """What is told of a result: nothing of the answer where the body wants the prompt alone."""
        if not self._is_alone:
            return result
        logprobs = result.logprobs and result.logprobs[:0]
        return replace(result, text="", token_ids=[], logprobs=logprobs, finish_reason="length", label=None)

    def shown_delta(self, delta: Delta) -> Delta:
        """The same of a delta."""
        if not self._is_alone:
            return delta
        return replace(delta, text="", token_ids=[], logprobs=delta.logprobs and delta.logprobs[:0])
