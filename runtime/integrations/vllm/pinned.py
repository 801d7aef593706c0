"""Content-addressed copies of adapters, so that a reloaded name never hits the prefix cache of its old content.

vLLM keys the prefix cache by the adapter's name and path, and its weights by a number that a reload keeps. Here both
follow from the content: a directory is copied once into zweave's cache under its digest, and vLLM gets that copy. A
request keeps the expert that it began with, and a directory may be overwritten at any time.
"""

import threading
from pathlib import Path

from ...io.atomic_write import atomic_directory
from ...io.cache_dir import cache_dir, lock
from .adapter import TENSORS, is_adapter, load_adapter, save_adapter

# Adapter directory -> state of its files when it was read, and its copy.
_known: dict[Path, tuple[tuple[int, ...], Path]] = {}
_NUMBERS = 2**31 - 2
_number_of: dict[str, int] = {}
_digest_of: dict[int, str] = {}
_guard = threading.Lock()


def pinned_path(directory: str | Path) -> Path | None:
    """The copy of an adapter directory under the digest of its expert; None for other kinds of adapters.

    Raises ZweaveError if the directory is damaged, or the copy cannot be written.
    """
    directory = Path(directory)
    root = cache_dir() / "vllm"
    if directory.parent == root and directory.is_dir():
        return directory
    if not is_adapter(directory):
        return None
    state = _state(directory)
    known = _known.get(directory)
    if known and known[0] == state and known[1].parent == root and known[1].is_dir():
        return known[1]
    expert = load_adapter(directory)
    target = root / f"{expert.digest[:32]}-{(expert.base_digest or 'any')[:16]}"
    _known[directory] = state, target
    if not target.is_dir():
        with lock(target):
            if not target.is_dir():
                with atomic_directory(target) as temporary:
                    save_adapter(expert, temporary)
    return target


def _state(directory: Path) -> tuple[int, ...]:
    """Changes when the expert file is written anew; empty if it is missing."""
    try:
        found = (directory / TENSORS).stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def number(path: Path) -> int:
    """An adapter number of at least 1 for a pinned path, the same in every process unless two clash in this one."""
    digest = path.name
    with _guard:
        if digest not in _number_of:
            found = int(digest[:15], 16) % _NUMBERS + 1
            while _digest_of.get(found, digest) != digest:
                found = found % _NUMBERS + 1
            _number_of[digest], _digest_of[found] = found, digest
        return _number_of[digest]
