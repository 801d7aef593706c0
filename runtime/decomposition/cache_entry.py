"""The files of a decomposition in the cache: the factors of each matrix, and an index of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError
from ..io.atomic_write import flush
from ..io.cache_dir import cache_dir
from ..io.tensor_file import open_tensors

FORMAT = "zweave-decomposition-1"


@dataclass(frozen=True, slots=True)
class Matrix:
    """An entry of the index.

    shape: [M, N] of W.
    size: bytes of the file with its factors.
    error: relative error of the factors.
    driver: name of the algorithm that found them.
    """

    shape: tuple[int, int]
    size: int
    error: float
    driver: str


def entry_directory(digest: str) -> Path:
    """Where the decomposition of the weights with this digest lies."""
    return cache_dir() / "decompositions" / digest


def factors_file(directory: Path, module: str) -> Path:
    """The file with the factors of one matrix: u [M, R], sigma [R], vt [R, N], float32."""
    return directory / f"{module}.safetensors"


def stored_bytes(shape: tuple[int, int]) -> int:
    """What the factors of a matrix take on the disk."""
    rows, columns = shape
    # 4 KiB for the header and the rest of the last disk block.
    return 4 * min(shape) * (rows + columns + 1) + 4096


def check_factors(path: Path, matrix: Matrix) -> None:
    """Raises ZweaveError unless a file has the tensors and the size that the index says."""
    with open_tensors(path) as handle:
        check_shapes(handle, matrix.shape)
    if path.stat().st_size != matrix.size:
        raise ZweaveError(f"{path} has {path.stat().st_size} bytes, the index says {matrix.size}")


def check_shapes(handle: Any, shape: tuple[int, int]) -> None:
    """Raises ZweaveError unless an open file holds the factors of a matrix of this shape."""
    rows, columns, rank = *shape, min(shape)
    expected = {"u": [rows, rank], "sigma": [rank], "vt": [rank, columns]}
    views = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
    found = {key: view.get_shape() for key, view in views.items()}
    if found != expected or any(view.get_dtype() != "F32" for view in views.values()):
        raise ZweaveError(f"its tensors are {found}, not {expected} in float32")


def read_index(directory: Path, digest: str) -> dict[str, Matrix]:
    """Module name to entry, in layer order; ZweaveError if the index is damaged or of other weights."""
    path = directory / "index.json"
    try:
        index = json.loads(path.read_text())
        if index["format"] != FORMAT or index["digest"] != digest:
            raise ZweaveError(f"{path} is of another format or model")
        matrices = {
            module: Matrix(
                (int(entry["shape"][0]), int(entry["shape"][1])),
                int(entry["size"]),
                float(entry["error"]),
                str(entry["driver"]),
            )
            for module, entry in index["matrices"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ZweaveError(f"{path} is not a readable index") from None
    # A name that is not a matrix's could lead out of the folder.
    for module in matrices:
        layer_of(module)
    return matrices


def write_index(directory: Path, digest: str, matrices: Mapping[str, Matrix]) -> None:
    """Writes the index and brings it to the disk."""
    path = directory / "index.json"
    entries = {
        module: {"shape": matrix.shape, "size": matrix.size, "error": matrix.error, "driver": matrix.driver}
        for module, matrix in matrices.items()
    }
    path.write_text(json.dumps({"format": FORMAT, "digest": digest, "matrices": entries}, indent=1) + "\n")
    flush(path)
