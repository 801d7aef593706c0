"""What a text encoder makes of texts: a state for each token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, eq=False)
class TokenStates:
    """The states of some texts.

    states: [texts, tokens, width], float32; 0 where a text has ended.
    mask: [texts, tokens], bool; true for a text's own tokens.
    """

    states: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, chosen: Tensor) -> "TokenStates":
        """Those texts, cut to the longest of them."""
        mask = self.mask[chosen]
        length = int(mask.sum(1).max()) if len(mask) else 0
        return TokenStates(self.states[chosen, :length], mask[:, :length])

    def to(self, device: torch.device) -> "TokenStates":
        return TokenStates(self.states.to(device), self.mask.to(device))

    def mean(self) -> Tensor:
        """[texts, width], each of length 1: what a text is about, hardly in which order it says so."""
        total = (self.states * self.mask[..., None]).sum(1)
        return F.normalize(total / self.mask.sum(1, keepdim=True).clamp(min=1), dim=-1)

    @classmethod
    def joined(cls, parts: Sequence["TokenStates"], width: int) -> "TokenStates":
        """The texts of all parts, padded to the longest; width is needed where there are none."""
        length = max((part.mask.shape[1] for part in parts), default=0)
        states = [F.pad(part.states, (0, 0, 0, length - part.states.shape[1])) for part in parts]
        masks = [F.pad(part.mask, (0, length - part.mask.shape[1])) for part in parts]
        return cls(
            torch.cat([torch.zeros(0, length, width), *states]),
            torch.cat([torch.zeros(0, length, dtype=torch.bool), *masks]),
        )
