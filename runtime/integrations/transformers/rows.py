"""The expert of each row of a batch, and the mode of its tokens in each matrix."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zweave.kernels import LinearMode
from zweave.kernels.adapted_linear import TokenGroup, group_by_mode

from ...errors import ZweaveError


class Rows:
    """The experts of a batch's rows, in order.

    slots: the bank's slot of each row, 0 for the base and for experts that learn.
    modes: [matrices, rows] uint8, the `LinearMode` of each of these slots in each matrix.
    learning: for each row the name of the expert that learns, or None.
    device: where the model computes.

    A batch of k times as many rows gives each of them k rows in succession, as beams and returned sequences lie.
    """

    def __init__(
        self, slots: Sequence[int], modes: Tensor, learning: Sequence[str | None], device: torch.device
    ) -> None:
        self.slots = list(slots)
        self.learning = list(learning)
        self.learns = any(name is not None for name in learning)
        self._slots = torch.tensor(self.slots, dtype=torch.int32)
        self._device = device
        self._patterns = [row.tobytes() for row in modes.numpy()]
        self._groups: dict[tuple[bytes, int], tuple[TokenGroup, ...]] = {}
        self._index: dict[int, Tensor] = {}

    def is_base(self, matrix: int, row: int) -> bool:
        """Whether a matrix computes a row that does not learn like the base model."""
        return self._patterns[matrix][row] == LinearMode.DENSE

    def groups(self, matrix: int, count: int) -> tuple[TokenGroup, ...]:
        """`count` tokens grouped by their mode in a matrix; matrices of equal modes share the groups."""
        key = pattern, _ = self._patterns[matrix], count
        found = self._groups.get(key)
        if found is None:
            modes = torch.from_numpy(np.frombuffer(pattern, dtype=np.uint8).copy())
            taken, slot = self._spread(modes, count), self._spread(self._slots, count)
            found = self._groups[key] = group_by_mode(taken, slot, self._device)
        return found

    def index(self, count: int) -> Tensor:
        """The row of each of `count` tokens, [count] int32."""
        found = self._index.get(count)
        if found is None:
            numbers = torch.arange(len(self.slots), dtype=torch.int32)
            found = self._index[count] = self._spread(numbers, count).to(self._device)
        return found

    def _spread(self, values: Tensor, count: int) -> Tensor:
        return values.repeat_interleave(count // len(self.slots))

    def check(self, name: str, x: Tensor) -> None:
        """Raises ZweaveError if the rows of x [rows, ..., in_features] cannot be told apart."""
        rows = x.shape[0] if x.dim() > 1 else 1
        if rows % len(self.slots):
            raise ZweaveError(
                f"{len(self.slots)} experts are named and the batch has {rows} rows at {name}: name one expert for "
                "all rows, or one for each"
            )


@dataclass(slots=True)
class Router:
    """The rows of the current forward pass, which all linears of a model read.

    rows: the current rows, None for the base model.
    otherwise: the rows outside of `use`.
    owner: the thread inside `use`.
    depth: how many nested `use` it is inside of.
    """

    rows: Rows | None = None
    otherwise: Rows | None = None
    owner: int | None = None
    depth: int = 0

    def enter(self, rows: Rows | None) -> Rows | None:
        """Makes rows the current ones and returns those before; ZweaveError inside another thread's `use`."""
        thread = threading.get_ident()
        if self.depth and self.owner != thread:
            raise ZweaveError(
                "another thread uses the model's experts: wait for it, or give it a model of its own"
            )
        before = self.rows
        self.rows, self.owner, self.depth = rows, thread, self.depth + 1
        return before

    def leave(self, before: Rows | None) -> None:
        """Ends an `enter`; before: what that returned."""
        self.depth -= 1
        self.rows = before if self.depth else self.otherwise
