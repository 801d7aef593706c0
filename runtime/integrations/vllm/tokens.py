"""Which row of the tables each token of a step takes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..modes import Group, groups_of


class Tokens:
    """The tokens of a step. row: [T] int64, the row of the tables of each, negative for the base, whose is the last."""

    def __init__(self, row: Tensor) -> None:
        self._row = row
        self._known: dict[bytes, tuple[Group, ...]] = {}

    def groups(self, modes: npt.NDArray[np.uint8]) -> tuple[Group, ...]:
        """How they pass through a linear; modes: [rows] of its table. Most linears have the same."""
        key = modes.tobytes()
        found = self._known.get(key)
        if found is None:
            row = torch.where(self._row < 0, len(modes) - 1, self._row)
            taken = torch.from_numpy(modes)[row]
            found = self._known[key] = groups_of(taken, row.to(torch.int32))
        return found


class StepTokens:
    """The tokens of vLLM's current step, found once for all layers."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._by_count: dict[int, Tokens] = {}
        self._update: Callable[..., None] = wrapper.update_metadata
        wrapper.update_metadata = self._refresh

    @classmethod
    def of(cls, wrapper: Any) -> "StepTokens":
        """Of a punica wrapper, which all layers share."""
        found = getattr(wrapper, "zweave_tokens", None)
        if found is None:
            found = wrapper.zweave_tokens = cls(wrapper)
        return found

    def __call__(self, count: int) -> Tokens:
        """The rows of `count` tokens; those beyond the requests' own are padding, computed as base tokens."""
        found = self._by_count.get(count)
        if found is None:
            length = self._wrapper.indices_len[0] or 0
            row = torch.full((count,), -1, dtype=torch.int64)
            known = self._wrapper.token_lora_indices[: min(count, length)] if length else row[:0]
            row[: len(known)] = known
            found = self._by_count[count] = Tokens(row)
        return found

    def _refresh(self, *args: Any, **options: Any) -> None:
        self._update(*args, **options)
        self._by_count.clear()
