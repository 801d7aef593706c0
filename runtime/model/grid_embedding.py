"""An embedding that lies on a grid: its rows are worked out when they are looked up."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.kernels import Packed, grid_rows


@dataclass(frozen=True, slots=True)
class GridEmbedding:
    """Indexed as a tensor is.

    packed: [vocabulary, hidden]; it may be the head as well.
    dtype: of the rows.
    """

    packed: Packed
    dtype: torch.dtype

    def __getitem__(self, token_ids: Tensor) -> Tensor:
        return grid_rows(self.packed, token_ids).to(self.dtype)
