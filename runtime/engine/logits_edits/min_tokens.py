"""The least number of tokens of an answer."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .beside import beside


class MinTokens:
    """Excludes the tokens that end an answer while it has less than `count` tokens."""

    def __init__(self, count: int, ends: Iterable[int]) -> None:
        self._count = count
        self._ends = torch.tensor([*set(ends)], dtype=torch.int64)

    def edit(self, logits: Tensor, generated: Sequence[int]) -> None:
        """See `LogitsEdit`."""
        if len(generated) < self._count:
            logits.index_fill_(0, beside(self._ends, logits), float("-inf"))
