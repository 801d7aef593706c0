"""Which row of the scale tables each token of a step takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a step.

    slot: int32, rows of the tables of the tokens that experts adapt; None if there are none.
    dense, factored: int64 indices of the base's tokens and of those of experts; None where all go one way.
    """

    slot: Tensor | None
    dense: Tensor | None = None
    factored: Tensor | None = None

    @classmethod
    def of(cls, index: Tensor) -> "Tokens":
        """index: [T] int64, the row of each token, negative for the base."""
        adapted = index >= 0
        if not adapted.any():
            return cls(None)
        slot = index.to(torch.int32)
        if adapted.all():
            return cls(slot)
        factored = adapted.nonzero().flatten()
        return cls(slot[factored], (~adapted).nonzero().flatten(), factored)


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
        """How `count` tokens pass; those beyond the ones that requests have are padding and take the base's way."""
        found = self._by_count.get(count)
        if found is None:
            length = self._wrapper.indices_len[0] or 0
            index = torch.full((count,), -1, dtype=torch.int64)
            known = self._wrapper.token_lora_indices[: min(count, length)] if length else index[:0]
            index[: len(known)] = known
            found = self._by_count[count] = Tokens.of(index)
        return found

    def _refresh(self, *args: Any, **options: Any) -> None:
        self._update(*args, **options)
        self._by_count.clear()
