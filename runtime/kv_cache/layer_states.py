"""States of a sequence's tokens as they enter a layer: from them its upper layers can be computed without the lower."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerStates:
    """states: [tokens, hidden] float32, of the tokens from `start` on, as they enter `layer` (from 1 on)."""

    layer: int
    start: int
    states: Tensor

    @property
    def stop(self) -> int:
        return self.start + len(self.states)

    def then(self, more: Tensor) -> "LayerStates":
        """With the states of the tokens that follow."""
        return LayerStates(self.layer, self.start, torch.cat([self.states, more]))

    def since(self, start: int) -> "LayerStates | None":
        """Without those of the tokens before `start`; None if none are left."""
        first = max(0, start - self.start)
        return LayerStates(self.layer, self.start + first, self.states[first:]) if start < self.stop else None

    def between(self, start: int, stop: int) -> Tensor:
        """A copy of the states from `start` to before `stop`, as far as known; none if that at `start` is not."""
        first = start - self.start
        return self.states[first : stop - self.start].clone() if first >= 0 else self.states[:0]
