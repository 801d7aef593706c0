"""The mean hidden state of a prompt, read while it is computed: the same bits however the prompt is cut.

Sums run from token to token in float64, one after the other, so that they do not depend on where a chunk ends. A prompt
whose beginning is found in the prefix tree goes on with the sum of the states that are kept there.
"""

import torch
from torch import Tensor

from ..kv_cache.running_sums import Sum, running_sums


class Pooling:
    """What a first pass reads of the base's states that enter a layer, over the first `stop` tokens of a prompt.

    ends: the layer, `layer` or one above it, up to which the tokens are computed; the answer goes on from there if
        its mixture adapts none below. None computes them whole.
    spared: the base's keys and values of these tokens, in all layers, are the answer's, too, by what can be chosen.
    tokens: how many are summed up.
    """

    def __init__(self, layer: int, stop: int, ends: int | None, spared: bool) -> None:
        self.layer = layer
        self.stop = stop
        self.ends = ends
        self.spared = spared
        self.tokens = 0
        self._sum: Sum | None = None

    @property
    def done(self) -> bool:
        return self.tokens == self.stop

    def restart(self, tokens: int, total: Sum | None) -> None:
        """Goes on after `tokens` whose states add up to `total`."""
        self.tokens, self._sum = tokens, total

    def add(self, start: int, states: Tensor) -> None:
        """Takes the states [tokens, hidden] of the tokens from `start` on, unless it has them already."""
        if start != self.tokens:
            return
        self._sum, self.tokens = running_sums(self._sum, states)[-1].copy(), start + len(states)

    def mean(self) -> Tensor:
        """[hidden] float32."""
        assert self._sum is not None
        return torch.from_numpy(self._sum / self.tokens).float()
