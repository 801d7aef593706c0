"""Files and folders that are whole or absent: written beside their place under a temporary name, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from uuid import uuid4

from ..errors import ZweaveError
from .cache_dir import disk_errors


@contextmanager
def atomic_write(path: Path, to_disk: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path` for the block to write, and renames it to `path` in the end.

    The temporary file is removed if the block fails; `path` is then as it was. A link stays one: the file that it leads
    to is replaced. What is no regular file, such as /dev/null, is written itself.

    to_disk: wait until the file is on the disk before it is renamed, so that it is whole even if the machine stops.
    Raises ZweaveError if the disk is full or cannot be written.
    """
    if path.exists() and not path.is_file():
        with disk_errors(path):
            yield path
        return
    target = path.resolve()
    temporary = _temporary(target)
    try:
        with disk_errors(path):
            yield temporary
            if to_disk:
                flush(temporary)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; ZweaveError if it cannot be written."""
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ZweaveError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `target` if the block succeeds and vanishes if it does not.

    The files are on the disk before the folder gets its name, so whoever finds `target` finds it whole. The
    caller holds `lock(target)`: folders that a killed process left behind are removed first.
    Raises ZweaveError if the disk is full or cannot be written.
    """
    temporary = _temporary(target)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in target.parent.glob(f".{escape(target.name)}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()
    try:
        with disk_errors(target):
            yield temporary
            for path in [*temporary.rglob("*"), temporary]:
                flush(path)
            temporary.rename(target)
            flush(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def flush(path: Path) -> None:
    """Returns when a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(target: Path) -> Path:
    return target.parent / f".{target.name}.{uuid4().hex}.tmp"
