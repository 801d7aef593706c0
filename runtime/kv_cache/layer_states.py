"""Hidden states that enter a layer: from them a token's upper layers can be computed without the lower ones."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerStates:
    """States of consecutive tokens of a sequence.

    layer: the layer that they enter, from 1 on.
    start: position of the first token.
    states: [tokens, hidden] float32.
    """

    layer: int
    start: int
    states: Tensor

    @property
    def stop(self) -> int:
        return self.start + len(self.states)

    def then(self, more: Tensor) -> "LayerStates":
        """Appends the states of the tokens that follow."""
        return LayerStates(self.layer, self.start, torch.cat([self.states, more]))

    def since(self, start: int) -> "LayerStates | None":
        """Drops the states before `start`; None if no others are left."""
        first = max(0, start - self.start)
        return LayerStates(self.layer, self.start + first, self.states[first:]) if start < self.stop else None

    def between(self, start: int, stop: int) -> Tensor:
        """A copy of the states from `start` to before `stop` or the last known one; empty if that of `start` is not."""
        first = start - self.start
        return self.states[first : stop - self.start].clone() if first >= 0 else self.states[:0]
