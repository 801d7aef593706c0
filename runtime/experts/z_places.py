"""Where z lie in an expert file, so that all of them are read into their columns by one call."""

import json
import os
from dataclasses import dataclass
from io import FileIO

import numpy as np
import torch

from .flat_layout import ColumnOrder, FlatLayout
from .flat_z import FlatZ, Values

# Buffers that one call of the system may fill.
_MAX_BUFFERS = 1024


@dataclass(frozen=True, slots=True)
class ZPlaces:
    """The order of z in a file that was checked.

    start: the byte of the first value.
    half: whether they are z - 1 in float16 instead of z in float32.
    order: of the matrices in the file, one after the other without a gap.
    """

    start: int
    half: bool
    order: ColumnOrder

    @classmethod
    def of(cls, data: bytes, layout: FlatLayout) -> "ZPlaces | None":
        """Those of a file's bytes; None where float32 and float16 are mixed."""
        length = int.from_bytes(data[:8], "little")
        tensors = json.loads(data[8 : 8 + length])
        tensors.pop("__metadata__", None)
        names = sorted(tensors, key=lambda name: tensors[name]["data_offsets"])
        kinds = {name.rpartition(".")[2] for name in names}
        if len(kinds) != 1:
            return None
        modules = tuple(name.rpartition(".")[0] for name in names)
        return cls(8 + length, kinds == {"z_minus_1"}, layout.order_of(modules))

    def read(self, file: FileIO, layout: FlatLayout, out: Values | None = None) -> FlatZ | None:
        """z of a file, in `out` if that is given; None if it is too short."""
        values = np.empty(layout.width, dtype=np.float32) if out is None else out
        stored = np.empty(layout.width, dtype=np.float16) if self.half else values
        if len(self.order.modules) < len(layout.columns):
            stored.fill(0 if self.half else 1)
        if not _fill(file, self.start, list(map(stored.data.__getitem__, self.order.columns))):
            return None
        if self.half:
            # PyTorch: it converts four times as fast as NumPy.
            torch.from_numpy(values).copy_(torch.from_numpy(stored)).add_(1)
        return FlatZ(values, self.order.modules)


def _fill(file: FileIO, start: int, buffers: list[memoryview]) -> bool:
    """Fills buffers with the bytes from `start` on; whether there were enough."""
    for first in range(0, len(buffers), _MAX_BUFFERS):
        some = buffers[first : first + _MAX_BUFFERS]
        wanted = sum(buffer.nbytes for buffer in some)
        if os.preadv(file.fileno(), some, start) != wanted:
            return False
        start += wanted
    return True
