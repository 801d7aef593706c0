"""Safetensors files on their own: read with one clear line on any fault, written whole or not at all."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ZweaveError, one_line, shortened
from ..step_turns import rest
from .atomic_write import atomic_write

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@contextmanager
def open_tensors(path: Path, framework: Literal["pt", "np"] = "pt") -> Iterator[Any]:
    """Yields safetensors' handle (`keys`, `metadata`, `get_slice`, `get_tensor`) on a file.

    framework: "np", or `read_tensors` instead, for what is loaded again and again while a program runs: safetensors
        (0.8) never frees two small objects of each of torch's tensors.

    Nothing in the file is executed. Raises ZweaveError if it is missing, not a file, truncated, of another
    format (a pickle, for example) or has a header that is too large or does not fit the file.
    """
    with _told(path), safe_open(path, framework=framework) as handle:
        yield handle


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, copied one by one; nothing of them stays behind when they go.

    Raises ZweaveError as `open_tensors` does, and if a tensor is of a dtype that is no torch dtype of whole bytes.
    """
    with open_tensors(path, framework="np"), path.open("rb") as file:
        # What follows trusts this header, which safetensors has just found to fit the file.
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            if entry["dtype"] not in _DTYPES:
                raise ZweaveError(f"{path}: a tensor is of dtype {shortened(entry['dtype'])}")
            begin, end = entry["data_offsets"]
            data = torch.empty(end - begin, dtype=torch.uint8)
            file.seek(start + begin)
            if file.readinto(data.numpy().data) != end - begin:
                raise ZweaveError(f"{path}: is not a whole safetensors file (it became shorter)")
            tensors[name] = data.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
            rest()
        return tensors


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what goes wrong with a file into one line."""
    if not path.exists():
        raise ZweaveError(f"{path}: there is no such file")
    if not path.is_file():
        raise ZweaveError(f"{path}: is not a file")
    try:
        yield
    except SafetensorError as error:
        raise ZweaveError(f"{path}: is not a whole safetensors file ({one_line(error)})") from None
    except OSError as error:
        raise ZweaveError(f"{path}: cannot be read ({error.strerror or error})") from None


class TensorBytes:
    """The bytes of a safetensors file, with as much of safetensors' handle for numpy as `open_tensors` yields.

    Raises ZweaveError as that does.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._tensors = dict(deserialize(data))
        except SafetensorError as error:
            raise ZweaveError(f"is not a whole safetensors file ({one_line(error)})") from None
        end = 8 + int.from_bytes(data[:8], "little")
        self._metadata: dict[str, str] | None = json.loads(data[8:end]).get("__metadata__")

    def keys(self) -> list[str]:
        return sorted(self._tensors)

    def metadata(self) -> dict[str, str] | None:
        return self._metadata

    def get_slice(self, key: str) -> "TensorView":
        return TensorView(self._tensors[key])

    def get_tensor(self, key: str) -> NDArray[Any]:
        return self.get_slice(key).values()


class TensorView:
    """One tensor of the bytes of a file."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self._entry = entry

    def get_dtype(self) -> str:
        dtype: str = self._entry["dtype"]
        return dtype

    def get_shape(self) -> list[int]:
        return list(self._entry["shape"])

    def values(self) -> NDArray[Any]:
        """Of float32 or float16."""
        kind = {"F32": np.float32, "F16": np.float16}[self.get_dtype()]
        return np.frombuffer(self._entry["data"], kind).reshape(self.get_shape())


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    to_disk: bool = True,
) -> None:
    """Writes a safetensors file, whole or not at all; the same tensors and metadata give the same bytes.

    to_disk: as of `atomic_write`.
    Raises ZweaveError if the folder is missing, or the disk is full or cannot be written.
    """
    if path.is_dir():
        raise ZweaveError(f"{path}: is a folder: give a file name")
    if path.exists() and not path.is_file():
        raise ZweaveError(f"{path}: is not a file")
    if not path.parent.is_dir():
        raise ZweaveError(f"{path.parent}: there is no such folder")
    with atomic_write(path, to_disk) as temporary:
        # safetensors creates files that only their owner can read; this one gets the usual mode.
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777
        save_file(dict(tensors), temporary, dict(metadata) if metadata else None)
        if metadata:
            _sort_metadata(temporary)
        temporary.chmod(mode)


def _sort_metadata(path: Path) -> None:
    """Sorts the metadata in a file's header, which safetensors writes in an order that differs from run to run."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))
