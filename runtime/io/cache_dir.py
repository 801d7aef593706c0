"""The cache directory: where it lies, locks between processes, and what its disk may lack."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import ZweaveError

CACHE_VARIABLE = "ZWEAVE_CACHE"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def cache_dir() -> Path:
    """$ZWEAVE_CACHE, or ~/.cache/zweave; it need not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE) or "~/.cache/zweave"
    return Path(os.path.expanduser(chosen)).absolute()


@contextmanager
def lock(target: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock of a cache entry; the system frees it when a process dies.

    waiting: called once if another process holds the lock.
    Raises ZweaveError if the entry's folder cannot be written.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(target.parent / f".{target.name}.lock", thread_local=False)
        try:
            held.acquire(blocking=False)
        except Timeout:
            if waiting is not None:
                waiting()
            held.acquire()
    try:
        yield
    finally:
        held.release()


def require_space(path: Path, size: int) -> None:
    """Raises ZweaveError unless the disk that holds (or will hold) `path` has `size` bytes free."""
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < size:
        raise ZweaveError(
            f"{path} has {free / 1e6:.0f} MB free and {size / 1e6:.0f} MB are needed: "
            f"free some space or set {CACHE_VARIABLE} to another disk"
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full or unwritable disk into a ZweaveError about `path`; other errors pass."""
    other = f" or set {CACHE_VARIABLE} to another disk" if path.is_relative_to(cache_dir()) else ""
    full = f"no space left on the disk of {path}: free some{other}"
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ZweaveError(full) from None
        if error.errno in _DENIED or error.errno in (errno.EEXIST, errno.ENOTDIR):
            raise ZweaveError(f"cannot write {path} ({error.strerror}): mend it{other}") from None
        raise
    except Exception as error:
        # safetensors wraps the system's error in a type of its own and keeps only the text.
        if f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error):
            raise ZweaveError(full) from None
        raise
