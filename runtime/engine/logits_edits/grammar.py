"""Tokens that a format does not allow."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import ZweaveError, one_line

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarEdit:
    """Leaves only tokens that a format allows next; end tokens are among them where the answer may end.

    matcher: at the answer's beginning; it is this edit's own.
    """

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher
        self._consumed: list[int] = []

    def edit(self, logits: Tensor, generated: Sequence[int]) -> None:
        """Sets the logits of other tokens to -inf. logits: [vocabulary], float32; generated: the answer so far."""
        self._follow(list(generated))
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        self._check()
        size = min(len(allowed), len(logits))
        logits[:size].masked_fill_(allowed[:size].to(logits.device) == 0, float("-inf"))
        logits[size:] = float("-inf")

    def _follow(self, generated: list[int]) -> None:
        """Consumes the tokens that are new, from the beginning if others were consumed before."""
        done = len(self._consumed)
        if generated[:done] != self._consumed:
            self._matcher.reset()
            done = 0
        self._matcher.consume_tokens(generated[done:])
        self._check()
        self._consumed = generated

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = one_line(ValueError(self._matcher.get_error()))
            raise ZweaveError(f"response_format: the answer so far cannot be continued: {reason}")
