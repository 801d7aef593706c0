"""Penalties of tokens that were there before.

l[v] = l[v] / r if l[v] > 0 else l[v] * r        for v of the prompt or the answer, r: repetition_penalty
l[v] = l[v] - f * count[v] - p                   for v of the answer, f: frequency_penalty, p: presence_penalty
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ...request import Sampling
from .beside import beside


class Penalties:
    """sampling: says how much. prompt: the token ids before the answer."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        self._prompt = frozenset(prompt)

    def edit(self, logits: Tensor, generated: Sequence[int]) -> None:
        """See `LogitsEdit`."""
        sampling = self._sampling
        if sampling.repetition_penalty != 1:
            ids = beside(torch.tensor([*self._prompt.union(generated)]), logits)
            known = logits[ids]
            penalty = sampling.repetition_penalty
            logits[ids] = torch.where(known > 0, known / penalty, known * penalty)
        if generated and (sampling.presence_penalty or sampling.frequency_penalty):
            counts = Counter(generated)
            ids = beside(torch.tensor([*counts]), logits)
            times = beside(torch.tensor([*counts.values()], dtype=torch.float32), logits)
            logits[ids] = logits[ids] - sampling.frequency_penalty * times - sampling.presence_penalty
