"""Biases that a request gives to tokens."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .beside import beside


class LogitBias:
    """Adds a bias to the logit of each of some tokens. biases: by token id."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._ids = torch.tensor([*biases])
        self._biases = torch.tensor([*biases.values()], dtype=torch.float32)

    def edit(self, logits: Tensor, generated: Sequence[int]) -> None:
        """See `LogitsEdit`."""
        logits.index_add_(0, beside(self._ids, logits), beside(self._biases, logits))
