"""Looks at a batch and decides whether its slots' own ways or one way for all is cheaper."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from zweave.kernels import Way

from .cost_model import CostModel
from .delta_formats import BYTES
from .plan import Plan


class BatchPlanner:
    """Each way that occurs in a batch reads weights of its own: base tokens W, unrestricted experts U and V.
    A few tokens of each kind are then cheaper all by U and V. Used where results may depend on the batch
    within rounding (`batch_invariant=False`).

    ways: [matrices, slots] uint8, the bank's table, in the order of the plan.
    """

    def __init__(self, plan: Plan, ways: Tensor, costs: CostModel) -> None:
        self._ways = ways
        self._costs = costs
        shapes = np.array([matrix.shape for matrix in plan.values()], dtype=np.float64)
        both, rank = shapes.sum(1), shapes.min(1)
        leading = np.array([matrix.leading for matrix in plan.values()], dtype=np.float64)
        self._dense = shapes.prod(1)
        # As many weights of W as take the time of the delta's.
        self._delta = self._dense + leading * both * [
            BYTES[matrix.format] / costs.value_bytes if matrix.format else 1.0 for matrix in plan.values()
        ]
        self._factored = rank * both
        self._all_can = all(matrix.factored for matrix in plan.values())

    def all_factored(self, slot: Tensor) -> bool:
        """Whether all tokens should go the factored way. slot: [T] int32."""
        if not self._all_can:
            return False
        costs = self.costs(slot)
        return costs["all factored"] < costs["own ways"]

    def costs(self, slot: Tensor) -> Mapping[str, float]:
        """Predicted seconds of the products of a step, each slot its own way and all tokens factored."""
        slots, counts = np.unique(slot.numpy(), return_counts=True)
        ways = self._ways.numpy()[:, slots]
        own = np.zeros(len(ways))
        for way, weights in (
            (Way.DENSE, self._dense),
            (Way.DELTA, self._delta),
            (Way.FACTORED, self._factored),
        ):
            own += self._costs.product(weights, (ways == way) @ counts)
        # A merged slot reads weights of its own.
        for column, count in enumerate(counts):
            own += self._costs.product(self._dense, (ways[:, column] == Way.MERGED) * count)
        together = self._costs.product(self._factored, counts.sum())
        return {"own ways": float(own.sum()), "all factored": float(np.sum(together))}


def count_by_slot(slot: Tensor) -> dict[int, int]:
    """Tokens of each adapted slot in a batch."""
    slots, counts = torch.unique(slot, return_counts=True)
    return {int(s): int(n) for s, n in zip(slots, counts, strict=True) if s}
