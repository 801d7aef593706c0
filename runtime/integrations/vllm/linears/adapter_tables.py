"""The table rows of the adapters of one linear that vLLM may have fused of several."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....experts.slot_tables import SlotTables
from ....planner.plan import MatrixPlan


class AdapterTables:
    """Slot 0 is the base model's, slot 1 + i that of vLLM's adapter index i.

    sigmas: [R] of each matrix, from top to bottom
    plans: of each
    adapters: number of adapters that the tables hold

    scale: [1 + adapters, sum of R] float32, sigma * z
    delta: [1 + adapters, sum of K] float32, sigma * (z - 1) of the leading components that the plans keep
    scales, deltas: their columns for each matrix
    modes: [1 + adapters] uint8, the `LinearMode` of each slot: the most general one that any of the matrices needs
    """

    def __init__(self, sigmas: Sequence[Tensor], plans: Sequence[MatrixPlan], adapters: int) -> None:
        self.adapters = adapters
        self._names = [str(index) for index in range(len(sigmas))]
        self._plans = dict(zip(self._names, plans, strict=True))
        by_name = dict(zip(self._names, sigmas, strict=True))
        self._tables = SlotTables(by_name, 1 + adapters, sigmas[0].device, self._plans)
        self.scale, self.delta = self._tables.scale, self._tables.delta
        self.scales = [self._tables.columns(name) for name in self._names]
        self.deltas = [self._tables.delta_columns(name) for name in self._names]
        for adapter in range(adapters):
            self.write(adapter, [None] * len(sigmas))

    @property
    def modes(self) -> npt.NDArray[np.uint8]:
        # Ascending modes are ever more general: a matrix in dense mode has a delta of zeros and a scale of sigma.
        modes: npt.NDArray[np.uint8] = self._tables.modes.amax(0).numpy()
        return modes

    def write(self, adapter: int, z: Sequence[Tensor | None]) -> None:
        """Writes the slot of an adapter index: one z [R] a matrix, None where it adapts nothing."""
        adapted = {
            name: self._served(name, values)
            for name, values in zip(self._names, z, strict=True)
            if values is not None
        }
        self._tables.write(1 + adapter, self._tables.rows_of(adapted))

    def _served(self, name: str, z: Tensor) -> Tensor:
        """The components of z that the plan can serve.

        The loader refuses experts of more; what vLLM warms up with is all zeros.
        """
        plan = self._plans[name]
        if plan.factored:
            return z
        return torch.cat([z[: plan.delta_rank], torch.ones_like(z[plan.delta_rank :])])
