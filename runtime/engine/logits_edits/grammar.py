"""Excludes the tokens that an answer's format does not allow."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .beside import beside

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarEdit:
    """Leaves the tokens that a format allows next; end tokens are among them where the answer may end.

    No token is left where the format's automaton gives up, as it does if it grows beyond its limits.

    start: the automaton before the answer.
    """

    def __init__(self, start: "LLMatcher") -> None:
        self._start = start
        self._matcher = start.deep_copy()
        self._consumed: list[int] = []

    def edit(self, logits: Tensor, generated: Sequence[int]) -> None:
        """See `LogitsEdit`."""
        self._follow(list(generated))
        excluded = torch.ones(len(logits), dtype=torch.bool)
        if not self._matcher.is_error():
            # A byte a token, 0 for those that are excluded; the model may have more tokens than its tokenizer.
            allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
            if not self._matcher.is_error():
                excluded[: len(allowed)] = allowed[: len(logits)] == 0
        logits.masked_fill_(beside(excluded, logits), float("-inf"))

    def _follow(self, generated: list[int]) -> None:
        """Consumes the tokens that are new; from the beginning if others were consumed before."""
        if generated[: len(self._consumed)] != self._consumed:
            self._matcher, self._consumed = self._start.deep_copy(), []
        self._matcher.consume_tokens(generated[len(self._consumed) :])
        self._consumed = generated
