"""What a GPU is told of vLLM's current step, once for all layers."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from zweave.kernels import LinearMode

from .adapter_tables import AdapterTables
from .tokens import slots_of


class HasTables(Protocol):
    """A linear of the step."""

    tables: AdapterTables


class DeviceStep:
    """The slots of a step's tokens and the mode that it needs, in tensors that stay where they are.

    vLLM sets them before a step is launched, whether kernel by kernel or as a CUDA graph, which reads the slots. A step
    of the same tokens as the one before may leave them as they are.

    slot: [most tokens of a step] int32 on the device. Rows beyond the step's own are padding, in the base's slot.
    mode: [1] uint8 on the host, the most general `LinearMode` that a linear needs; DENSE says that the step has no
        adapter at all.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        indices = wrapper._token_lora_indices
        self.slot = torch.zeros(len(indices), dtype=torch.int32, device=indices.device)
        self.mode = torch.empty(1, dtype=torch.uint8)
        self._linears: list[HasTables] = []
        self._modes: npt.NDArray[np.uint8] | None = None
        self.adapters_changed()
        self._update: Callable[..., None] = wrapper.update_metadata
        wrapper.update_metadata = self._refresh

    @classmethod
    def of(cls, wrapper: Any) -> "DeviceStep":
        """The step of a punica wrapper, which all layers share."""
        found = getattr(wrapper, "zweave_step", None)
        if found is None:
            found = wrapper.zweave_step = cls(wrapper)
        return found

    def add(self, linear: HasTables) -> None:
        self._linears.append(linear)
        self.adapters_changed()

    def adapters_changed(self) -> None:
        """Forgets what modes adapters need: until the next step is set, the most general mode is right for it."""
        self._modes = None
        self.mode[0] = int(LinearMode.FACTORED)

    def _refresh(
        self, mapping: Any, lora_index_to_id: Sequence[int | None], *args: Any, **options: Any
    ) -> None:
        self._update(mapping, lora_index_to_id, *args, **options)
        count = self._wrapper.indices_len[0]
        self.slot.zero_()
        self.slot[:count] = slots_of(self._wrapper._token_lora_indices[:count])
        active = set(mapping.index_mapping)
        self.mode[0] = self._needed([1 + i for i, id in enumerate(lora_index_to_id) if id in active])

    def _needed(self, slots: list[int]) -> int:
        """The mode that these slots of adapters need."""
        if not slots:
            return int(LinearMode.DENSE)
        if self._modes is None:
            self._modes = np.max([linear.tables.modes for linear in self._linears], axis=0)
        return max(int(LinearMode.DELTA), int(self._modes[slots].max()))
