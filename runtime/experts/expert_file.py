"""The file of a registered expert, which is read again whenever its z are needed."""

import hashlib
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from ..errors import ZweaveError
from .expert import Expert, z_of
from .flat_layout import FlatLayout
from .flat_z import FlatZ, Values
from .z_places import ZPlaces


@dataclass(frozen=True, slots=True, eq=False)
class ExpertFile:
    """A file as it was when it was checked.

    path: of the file.
    content: sha256 of its bytes.
    stamp: what shows that it was changed or replaced, see `_stamp`; None if there was no file.
    places: where its z lie, None where they are read one by one.
    """

    path: Path
    content: str
    stamp: tuple[int, ...] | None
    places: ZPlaces | None

    @classmethod
    def load(cls, path: Path, layout: FlatLayout, base_digest: str | None) -> "tuple[Expert, ExpertFile]":
        """Reads and checks a file; raises ZweaveError as `Expert.load` and `Expert.check` do, with its path."""
        # Before it is read: a file that changes meanwhile is checked again.
        stamp = _stamp_of(path)
        data = _bytes_of(path)
        expert = Expert.load(path)
        # It may be needed when the working directory is another one.
        path = path.absolute()
        try:
            expert.check(layout.shapes, base_digest)
        except ZweaveError as error:
            raise ZweaveError(f"{path}: {error}") from None
        is_unchanged = stamp is not None and _stamp_of(path) == stamp
        return expert, cls(path, _sha256(data), stamp, ZPlaces.of(data, layout) if is_unchanged else None)

    @property
    def is_unchanged(self) -> bool:
        """Whether it looks as it did."""
        return self.stamp is not None and self.stamp == _stamp_of(self.path)

    def read_z(self, layout: FlatLayout, out: Values | None = None) -> FlatZ | None:
        """z of a file that looks as it did or has the same bytes, in `out` if that is given; None of any other."""
        return self._read_unchanged(layout, out) or self._read_same_bytes(layout, out)

    def _read_unchanged(self, layout: FlatLayout, out: Values | None) -> FlatZ | None:
        if self.places is None:
            return None
        try:
            with FileIO(self.path) as file:
                if _stamp(os.fstat(file.fileno())) != self.stamp:
                    return None
                z = self.places.read(file, layout, out)
                # Whoever wrote to it meanwhile changed its time before its bytes.
                return z if _stamp(os.fstat(file.fileno())) == self.stamp else None
        except OSError:
            return None

    def _read_same_bytes(self, layout: FlatLayout, out: Values | None) -> FlatZ | None:
        data = _bytes_of(self.path)
        return FlatZ.of(z_of(data), layout, out) if _sha256(data) == self.content else None


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    """What shows that a file was changed or replaced."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _stamp_of(path: Path) -> tuple[int, ...] | None:
    """None if there is no file."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _bytes_of(path: Path) -> bytes:
    """A file's bytes, none if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
