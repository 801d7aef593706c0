"""What was worked out before, kept by digest up to so many bytes, so that a slot can be written at once."""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class ByteCache(Generic[T]):
    """Values by digest, the least recently used of which go when they are too many.

    max_bytes: of all values.
    max_count: of values: what small ones cost beside their bytes is bounded, too.
    """

    def __init__(self, max_bytes: int, max_count: int) -> None:
        self._left = max_bytes
        self._max_count = max_count
        self._values: OrderedDict[str, T] = OrderedDict()

    def get(self, digest: str) -> T | None:
        value = self._values.get(digest)
        if value is not None:
            self._values.move_to_end(digest)
        return value

    def put(self, digest: str, value: T) -> None:
        if digest in self._values:
            return
        self._values[digest] = value
        self._left -= value.nbytes
        while self._left < 0 or len(self._values) > self._max_count:
            _, oldest = self._values.popitem(last=False)
            self._left += oldest.nbytes
