"""z of all matrices side by side, as the bank's tables have them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .flat_layout import FlatLayout

Values: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class FlatZ:
    """z of an expert or a mixture.

    values: [sum of R] float32, 1 in the matrices that are not adapted.
    modules: the adapted matrices.
    """

    values: Values
    modules: tuple[str, ...]

    @classmethod
    def of(cls, z: Mapping[str, Tensor], layout: FlatLayout, out: Values | None = None) -> "FlatZ":
        """A copy of z [R] of each adapted matrix, in `out` if that is given."""
        assert z.keys() <= layout.columns.keys()
        values = np.empty(layout.width, dtype=np.float32) if out is None else out
        if len(z) < len(layout.columns):
            values.fill(1)
        for module, part in z.items():
            values[layout.columns[module]] = part.detach().cpu().numpy()
        return cls(values, tuple(z))

    def by_module(self, layout: FlatLayout) -> dict[str, Tensor]:
        """z of each adapted matrix, views."""
        return {module: torch.from_numpy(self.values[layout.columns[module]]) for module in self.modules}
