"""The bodies of all requests that are read or worked on, and how much memory they may take."""

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ApiError


class HeldBodies:
    """Counts the bytes of bodies, and turns a request away whose body is one too many.

    most: bytes of all of them; one alone may have more.
    count: as many there are now.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0

    @contextmanager
    def hold(self) -> Iterator["HeldBody"]:
        """Within it the body of one request is counted."""
        held = HeldBody(self)
        try:
            yield held
        finally:
            self.count -= held.size


class HeldBody:
    """What has come of one body.

    size: bytes.
    """

    def __init__(self, bodies: HeldBodies) -> None:
        self._bodies = bodies
        self.size = 0

    def grow(self, size: int) -> None:
        """More bytes have come; ApiError 429 if there is no room for them."""
        bodies = self._bodies
        others = bodies.count - self.size
        if others and bodies.count + size > bodies.most:
            raise ApiError(
                429,
                f"the bodies of other requests take {others} of the {bodies.most} bytes "
                "that this server holds of all: try again later",
                {"Retry-After": "1"},
            )
        bodies.count += size
        self.size += size
