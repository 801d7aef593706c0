"""Arrays side by side in one buffer of integers, so that a step copies once to the device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array: TypeAlias = npt.NDArray[np.generic]
Spec: TypeAlias = tuple[tuple[int, ...], type[np.generic]]

_TORCH = {np.int32: torch.int32, np.int64: torch.int64, np.float32: torch.float32}
# Fields begin at multiples of 16 bytes.
_ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class Packing:
    """Where fields lie in a buffer of int32.

    fields: name -> (offset in int32, shape, dtype: int32, int64 or float32)
    size: of the buffer
    """

    fields: Mapping[str, tuple[int, tuple[int, ...], type[np.generic]]]
    size: int

    @classmethod
    def of(cls, specs: Mapping[str, Spec]) -> "Packing":
        """The packing of fields of these shapes and dtypes."""
        fields, offset = {}, 0
        for name, (shape, dtype) in specs.items():
            fields[name] = offset, shape, dtype
            offset += -(-_width(shape, dtype) // _ALIGNMENT) * _ALIGNMENT
        return cls(fields, offset)

    def write(self, buffer: Tensor, values: Mapping[str, Array]) -> None:
        """Writes the fields into a buffer on the host."""
        target = buffer.numpy()
        for name, (offset, shape, dtype) in self.fields.items():
            field = target[offset : offset + _width(shape, dtype)].view(dtype).reshape(shape)
            field[...] = values[name]

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The fields in a buffer."""
        return {
            name: buffer[offset : offset + _width(shape, dtype)].view(_TORCH[dtype]).view(shape)
            for name, (offset, shape, dtype) in self.fields.items()
        }


def _width(shape: tuple[int, ...], dtype: type[np.generic]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize // 4
