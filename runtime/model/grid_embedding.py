"""An embedding that lies on a grid: its rows are worked out when they are looked up."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GridEmbedding:
    """Indexed as a tensor is.

    rows: the rows [n, hidden] of some tokens [n]; what gives them may be the head as well.
    dtype: of the rows.
    """

    rows: Callable[[Tensor], Tensor]
    dtype: torch.dtype

    def __getitem__(self, token_ids: Tensor) -> Tensor:
        return self.rows(token_ids).to(self.dtype)
