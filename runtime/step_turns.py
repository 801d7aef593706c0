"""Turns of an engine's steps and of whoever loads beside them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Seconds between two looks at whether a step has ended.
_LOOK = 0.002


class StepTurns:
    """Cuts work in another thread into pieces, of which a step has at most one beside it.

    A step has as many threads as there are processors, and these wait for each other: it takes longer by twice of
    what another thread computes meanwhile.

    piece: seconds of its processor that a thread computes before it rests.
    longest: seconds that it waits for the end of a step.
    """

    def __init__(self, piece: float = 0.002, longest: float = 0.2) -> None:
        self._piece = piece
        self._longest = longest
        self._thread = threading.local()
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

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Work of this thread that rests, see `rest`, wherever a piece of it ends."""
        token = _BESIDE.set(self)
        try:
            yield
        finally:
            _BESIDE.reset(token)

    def rest(self) -> None:
        """Waits until the step in flight has ended if the thread has computed a piece since it last did.

        Not at all if there is no step. Cheap enough for a loop over matrices.
        """
        if time.thread_time() - getattr(self._thread, "rested", 0.0) < self._piece:
            return
        begun, end = self._begun, time.monotonic() + self._longest
        while self._is_running and self._begun == begun and time.monotonic() < end:
            time.sleep(_LOOK)
        self._thread.rested = time.thread_time()


_BESIDE: ContextVar[StepTurns | None] = ContextVar("beside", default=None)


def rest() -> None:
    """Rests if this is work beside steps; between pieces of what may be, of a few milliseconds each."""
    if (turns := _BESIDE.get()) is not None:
        turns.rest()
