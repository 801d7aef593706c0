"""The mean hidden state of a prompt, read while it is computed: the same bits however the prompt is cut.

Sums run from token to token in float64, one after the other, so that they do not depend on where a chunk ends.
What is summed up to the end of a block is kept with it in the prefix tree: a prompt whose beginning is found there
goes on with that sum.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Sum: TypeAlias = npt.NDArray[np.float64]


def running_sums(before: Sum | None, states: Tensor) -> Sum:
    """Sums up to each token. states: [tokens, hidden] float32; before: the sum so far [hidden], None for nothing.

    Returns [tokens, hidden]. The order of additions is that of the tokens.
    """
    values = states.cpu().numpy().astype(np.float64)
    if before is not None:
        values[0] += before
    return np.add.accumulate(values, axis=0, out=values)


class Pooling:
    """What a first pass reads of the base's states that enter a layer, over the first `stop` tokens of a prompt.

    ends: the layer, `layer` or one above it, up to which the tokens are computed; the answer goes on from there if
        its mixture adapts none below. None computes them whole.
    tokens: how many are summed up.
    """

    def __init__(self, layer: int, stop: int, ends: int | None) -> None:
        self.layer = layer
        self.stop = stop
        self.ends = ends
        self.tokens = 0
        self._sum: Sum | None = None
        self._marks: dict[int, Sum] = {}

    @property
    def done(self) -> bool:
        return self.tokens == self.stop

    def restart(self, tokens: int, total: Sum | None) -> None:
        """Goes on after `tokens` whose states add up to `total`."""
        self.tokens, self._sum = tokens, total
        self._marks.clear()

    def add(self, start: int, states: Tensor, block_size: int) -> None:
        """Takes the states [tokens, hidden] of the tokens from `start` on, unless it has them already."""
        if start != self.tokens:
            return
        sums = running_sums(self._sum, states)
        for end in range(start // block_size * block_size + block_size, start + len(sums) + 1, block_size):
            self._marks[end] = sums[end - start - 1].copy()
        self._sum, self.tokens = sums[-1].copy(), start + len(sums)

    def mark(self, tokens: int) -> Sum | None:
        """Gives away the sum up to the end of a block, once."""
        return self._marks.pop(tokens, None)

    def mean(self) -> Tensor:
        """[hidden] float32."""
        assert self._sum is not None
        return torch.from_numpy(self._sum / self.tokens).float()
