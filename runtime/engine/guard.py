"""Who may call an engine: one thread at a time, in the process that made it."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import ZweaveError

# The process that made the first engine. The kernels' threads run in it, and a fork does not copy threads.
_process: int | None = None


class GuardError(ZweaveError):
    """Another thread is using the engine."""


class Guard:
    """Keeps the calls of two threads apart, and a forked child's out.

    A thread may call while it is being called back, from an observer for instance. Raises ZweaveError in a forked
    child of a process that made an engine.
    """

    def __init__(self) -> None:
        global _process
        _process = _process or os.getpid()
        self._process = _process
        self.check_process()
        self._lock = threading.RLock()
        self._postponed: deque[Callable[[], object]] = deque()

    def check_process(self) -> None:
        """Raises ZweaveError in a forked child."""
        if os.getpid() != self._process:
            raise ZweaveError(
                "an engine was made in the process that this one was forked from, and a fork does not copy its "
                "threads: start processes by multiprocessing.get_context('spawn') and make an engine in each"
            )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """A context in which only this thread may call; raises GuardError if another thread is in one.

        What was postponed is done first.
        """
        self.check_process()
        if not self._lock.acquire(blocking=False):
            raise GuardError(
                "another thread is using this engine: call it from one thread at a time, "
                "or serve many at once through one zweave.AsyncEngine"
            )
        try:
            while self._postponed:
                self._postponed.popleft()()
            yield
        finally:
            self._lock.release()

    def soon(self, action: Callable[[], object]) -> None:
        """Does something now, or before the next call if another thread is using the engine.

        Nothing in a forked child.
        """
        if os.getpid() != self._process:
            return
        try:
            with self.exclusive():
                action()
        except GuardError:
            self._postponed.append(action)
