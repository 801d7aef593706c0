"""The grids of a converted model's matrices, in a file beside its float32 weights.

The file is of the safetensors format: for each matrix the blocks of the GGUF file, uint8 [rows, bytes of a row], and in
the metadata their kind. Its name says something else, because other libraries load whatever is called safetensors.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from zweave.kernels import Grid, GridKind

from ...errors import ZweaveError
from ...io.atomic_write import atomic_write
from ...io.tensor_file import open_tensors
from .grids import read_grid, row_bytes
from .tensor_stream import StreamedTensor, write_stream

_FILE = "model.grids"
_FORMAT = "zweave-grids-1"


@dataclass(frozen=True, slots=True)
class GridBlocks:
    """A matrix's blocks, to be written.

    name: of the matrix.
    shape: (rows, bytes of a row).
    rows: gives the blocks, uint8 of that shape.
    """

    name: str
    kind: GridKind
    shape: tuple[int, ...]
    rows: Callable[[], np.ndarray]

    def chunks(self) -> Iterator[np.ndarray]:
        yield self.rows()


def has_grids(directory: Path) -> bool:
    """Whether a directory says on which grids its matrices lie, if only that none does."""
    return (directory / _FILE).is_file()


def write_grids(directory: Path, grids: list[GridBlocks]) -> None:
    """Writes the file of a directory, whole or not at all; ZweaveError if the disk is full."""
    kinds = {grid.name: grid.kind for grid in grids}
    tensors = [StreamedTensor(g.name, "U8", g.shape, g.chunks) for g in grids]
    with atomic_write(directory / _FILE, to_disk=True) as temporary, temporary.open("wb") as file:
        write_stream(file, tensors, {"format": _FORMAT, "kinds": json.dumps(kinds)})


class GridFile:
    """Which matrices of a directory lie on a grid, and these grids.

    shapes: tensor -> shape of the model's tensors.
    Raises ZweaveError for a damaged file and for one of another model. A directory without the file has no grids.

    kinds: matrix -> its kind of grid.
    """

    def __init__(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._path = directory / _FILE
        self.kinds: dict[str, GridKind] = {}
        if not has_grids(directory):
            return
        with open_tensors(self._path, "np") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in stored.items()}
        kinds = _kinds_of(metadata)
        if kinds is None or kinds.keys() != found.keys():
            raise self._refusal("is no file of grids")
        for name, kind in kinds.items():
            shape = shapes.get(name, ())
            if len(shape) != 2 or found[name] != ("U8", (shape[0], row_bytes(kind, shape[1]))):
                raise self._refusal("does not belong to the weights beside it")
        self.kinds = kinds

    def read(self, name: str, weight: np.ndarray) -> Grid | None:
        """The grid of a matrix, None if it lies on none.

        weight: float32 [M, N], the values that it must have; ZweaveError if it has others.
        """
        if name not in self.kinds:
            return None
        with open_tensors(self._path, "np") as file:
            grid = read_grid(file.get_tensor(name), self.kinds[name])
        if not np.array_equal(grid.values().numpy(), weight):
            raise self._refusal("does not belong to the weights beside it")
        return grid

    def _refusal(self, reason: str) -> ZweaveError:
        return ZweaveError(
            f"{self._path} {reason}: delete it, then pull the model or open its GGUF file again"
        )


def _kinds_of(metadata: Mapping[str, str]) -> dict[str, GridKind] | None:
    """What the metadata of a file of grids say; None if it is none."""
    try:
        kinds = json.loads(metadata["kinds"]) if metadata.get("format") == _FORMAT else None
    except (ValueError, KeyError, RecursionError):
        return None
    if not isinstance(kinds, dict):
        return None
    return kinds if all(kind in list(get_args(GridKind)) for kind in kinds.values()) else None
