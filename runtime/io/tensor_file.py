"""Safetensors files on their own: read with one clear line on any fault, written whole or not at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ZweaveError, one_line
from .atomic_write import atomic_write


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Yields safetensors' handle (`keys`, `metadata`, `get_slice`, `get_tensor`) on a file.

    Nothing in the file is executed. Raises ZweaveError if it is missing, not a file, truncated, of another
    format (a pickle, for example) or has a header that is too large or does not fit the file.
    """
    if not path.exists():
        raise ZweaveError(f"{path}: there is no such file")
    if not path.is_file():
        raise ZweaveError(f"{path}: is not a file")
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except SafetensorError as error:
        raise ZweaveError(f"{path}: is not a whole safetensors file ({one_line(error)})") from None
    except OSError as error:
        raise ZweaveError(f"{path}: cannot be read ({error.strerror or error})") from None


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    to_disk: bool = True,
) -> None:
    """Writes a safetensors file, whole or not at all.

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
        temporary.chmod(mode)
