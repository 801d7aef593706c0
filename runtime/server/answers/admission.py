"""How many requests are taken up at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

from ..errors import ApiError


class Admission:
    """Counts the requests that are not answered yet, and turns away those that are too many.

    most: requests at once, waiting and running.
    count: as many there are now.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0
        self._seconds = 1.0

    @contextmanager
    def admit(self, number: int) -> Iterator[None]:
        """Within it so many requests more are in work; ApiError 429, with the seconds to wait, if there is no room."""
        if number > self.most:
            raise ApiError(
                400, f"the request asks for {number} answers, and this server takes up {self.most} at once"
            )
        if self.count + number > self.most:
            raise ApiError(
                429,
                f"{self.count} requests wait or run, and this server takes up {self.most} at once: try again later",
                {"Retry-After": str(max(1, ceil(self._seconds)))},
            )
        self.count += number
        try:
            yield
        finally:
            self.count -= number

    def note(self, seconds: float) -> None:
        """Learns how long requests take, from which follows when it is worth trying again."""
        self._seconds += 0.1 * (seconds - self._seconds)
