"""Turns of an engine's steps and of whoever loads beside them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds between two looks at whether a step has ended.
_LOOK = 0.002


class StepTurns:
    """Cuts work in another thread into pieces, of which a step has at most one beside it.

    A step has as many threads as there are processors, and these wait for each other: it takes longer by all that
    another thread computes meanwhile.

    longest: seconds that a piece waits for the end of a step.
    """

    def __init__(self, longest: float = 0.2) -> None:
        self._longest = longest
        self._begun = 0
        self._is_running = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step."""
        self._begun += 1
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False

    def rest(self) -> None:
        """Waits between two pieces until the step in flight has ended; not at all if there is none."""
        begun, end = self._begun, time.monotonic() + self._longest
        while self._is_running and self._begun == begun and time.monotonic() < end:
            time.sleep(_LOOK)
