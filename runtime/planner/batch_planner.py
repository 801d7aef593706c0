"""Decides for a batch whether each slot's own mode or factored mode for all tokens is cheaper."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from zweave.kernels import LinearMode

from .cost_model import CostModel
from .delta_formats import BYTES
from .plan import Plan


class BatchPlanner:
    """Chooses between the modes of a batch's slots and factored mode for all of its tokens.

    Each mode that occurs in a batch reads its own weights: dense reads W, factored reads U and V. For a few tokens
    of both it is cheaper to read U and V alone. Only with `batch_invariant=False`, where results may depend on the
    batch within rounding.

    plan: the matrices.
    modes: [matrices, slots] uint8, `SlotTables.modes`, in the order of the plan.
    costs: of the machine.
    """

    def __init__(self, plan: Plan, modes: Tensor, costs: CostModel) -> None:
        self._modes = modes
        self._costs = costs
        shapes = np.array([matrix.shape for matrix in plan.values()], dtype=np.float64)
        both, rank = shapes.sum(1), shapes.min(1)
        leading = np.array([matrix.delta_rank for matrix in plan.values()], dtype=np.float64)
        self._dense = shapes.prod(1)
        # Weights of W and of the delta, the latter counted by the time that they take beside W.
        self._delta = self._dense + leading * both * [
            BYTES[matrix.format] / costs.value_bytes if matrix.format else 1.0 for matrix in plan.values()
        ]
        self._factored = rank * both
        self._all_can = all(matrix.factored for matrix in plan.values())

    def all_factored(self, slot: Tensor) -> bool:
        """Whether factored mode for all tokens is cheaper. slot: [T] int32."""
        if not self._all_can:
            return False
        costs = self.costs(slot)
        return costs["all factored"] < costs["own modes"]

    def costs(self, slot: Tensor) -> Mapping[str, float]:
        """Predicted seconds of a step's products: each slot in its own mode, and all tokens factored."""
        slots, counts = np.unique(slot.numpy(), return_counts=True)
        modes = self._modes.numpy()[:, slots]
        own = np.zeros(len(modes))
        for mode, weights in (
            (LinearMode.DENSE, self._dense),
            (LinearMode.DELTA, self._delta),
            (LinearMode.FACTORED, self._factored),
        ):
            own += self._costs.product(weights, (modes == mode) @ counts)
        # A merged slot reads weights of its own.
        for column, count in enumerate(counts):
            own += self._costs.product(self._dense, (modes[:, column] == LinearMode.MERGED) * count)
        together = self._costs.product(self._factored, counts.sum())
        return {"own modes": float(own.sum()), "all factored": float(np.sum(together))}


def count_by_slot(slot: Tensor) -> dict[int, int]:
    """Tokens of each adapted slot in a batch."""
    slots, counts = torch.unique(slot, return_counts=True)
    return {int(s): int(n) for s, n in zip(slots, counts, strict=True) if s}
