"""The table slots of the tokens of a step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zweave.kernels.adapted_linear import TokenGroup, group_by_mode


class Tokens:
    """The tokens of a step.

    adapter: [T] int64, the adapter index of each as vLLM counts them, negative for the base model.
    """

    def __init__(self, adapter: Tensor) -> None:
        self._slot = slots_of(adapter)
        self._known: dict[bytes, tuple[TokenGroup, ...]] = {}

    def groups(self, modes: npt.NDArray[np.uint8]) -> tuple[TokenGroup, ...]:
        """The tokens grouped by their mode in a linear.

        modes: [slots] uint8, the mode of each slot there. Linears of equal modes share the groups.
        """
        key = modes.tobytes()
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = group_by_mode(torch.from_numpy(modes)[self._slot.long()], self._slot)
        return found


def slots_of(adapter: Tensor) -> Tensor:
    """Table slots [T] int32 of adapter indices [T]: 0 for the base model, 1 + i for adapter i."""
    return (adapter.clamp(min=-1) + 1).to(torch.int32)


class StepTokens:
    """The tokens of vLLM's current step, determined once for all layers."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._by_count: dict[int, Tokens] = {}
        self._update: Callable[..., None] = wrapper.update_metadata
        wrapper.update_metadata = self._refresh

    @classmethod
    def of(cls, wrapper: Any) -> "StepTokens":
        """The tokens of a punica wrapper, which all layers share."""
        found = getattr(wrapper, "zweave_tokens", None)
        if found is None:
            found = wrapper.zweave_tokens = cls(wrapper)
        return found

    def __call__(self, count: int) -> Tokens:
        """The first `count` tokens; those beyond the requests' own are padding, computed as base tokens."""
        found = self._by_count.get(count)
        if found is None:
            length = self._wrapper.indices_len[0] or 0
            adapter = torch.full((count,), -1, dtype=torch.int64)
            known = self._wrapper.token_lora_indices[: min(count, length)] if length else adapter[:0]
            adapter[: len(known)] = known
            found = self._by_count[count] = Tokens(adapter)
        return found

    def _refresh(self, *args: Any, **options: Any) -> None:
        self._update(*args, **options)
        self._by_count.clear()
