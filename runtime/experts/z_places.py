"""Where z lie in an expert file, so that all of them are read into their columns by one call."""

import json
import os
from dataclasses import dataclass
from io import FileIO

import numpy as np
import torch

from .flat_layout import FlatLayout
from .flat_z import FlatZ

# Buffers that one call of the system may fill.
_MAX_BUFFERS = 1024


@dataclass(frozen=True, slots=True)
class ZPlaces:
    """The order of z in a file that was checked.

    start: the byte of the first value.
    half: whether they are z - 1 in float16 instead of z in float32.
    modules: one after the other in the file, without a gap.
    """

    start: int
    half: bool
    modules: tuple[str, ...]

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
        return cls(8 + length, kinds == {"z_minus_1"}, layout.same_order(modules))

    def read(self, file: FileIO, layout: FlatLayout) -> FlatZ | None:
        """z of a file; None if it is too short."""
        values = np.empty(layout.width, dtype=np.float32)
        if len(self.modules) < len(layout.columns):
            values.fill(1)
        columns = [layout.columns[module] for module in self.modules]
        if self.half:
            differences = np.empty(sum(part.stop - part.start for part in columns), dtype=np.float16)
            if not _fill(file, self.start, [differences.data.cast("B")]):
                return None
            # PyTorch: it converts four times as fast as NumPy.
            z = torch.from_numpy(differences).float().add_(1).numpy()
            begin = 0
            for part in columns:
                end = begin + part.stop - part.start
                values[part] = z[begin:end]
                begin = end
        else:
            whole = values.data.cast("B")
            if not _fill(file, self.start, [whole[4 * part.start : 4 * part.stop] for part in columns]):
                return None
        return FlatZ(values, self.modules)


def _fill(file: FileIO, start: int, buffers: list[memoryview]) -> bool:
    """Fills buffers with the bytes from `start` on; whether there were enough."""
    for first in range(0, len(buffers), _MAX_BUFFERS):
        some = buffers[first : first + _MAX_BUFFERS]
        wanted = sum(map(len, some))
        if os.preadv(file.fileno(), some, start) != wanted:
            return False
        start += wanted
    return True
