"""Calls that may block: each on a thread of its own, given up when it takes too long."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ..errors import ZweaveError, one_line

Owner = TypeVar("Owner")

_AT_ONCE = 16
# Threads that were given up and may never end.
_MOST_HANGING = 256


class Call(Generic[Owner]):
    """owner: whom the outcome is for. result, or error: one line on why there is none."""

    def __init__(self, owner: Owner, function: Callable[[], object], blocking: bool) -> None:
        self.owner = owner
        self.blocking = blocking
        self.result: object = None
        self.error: str | None = None
        self.done = False
        self.started = 0.0
        self._function = function

    def run(self) -> None:
        try:
            self.result = self._function()
        except ZweaveError as error:
            self.error = str(error)
        # It may be a user's program: it can fail in any way.
        except Exception as error:
            self.error = f"the dispatcher fails: {one_line(error, with_type=True)}"
        self.done = True

    def given_up(self, reason: str) -> "Call[Owner]":
        """What is told instead of this call, whose thread goes on and may still write to it."""
        call = Call(self.owner, self._function, self.blocking)
        call.error, call.done = reason, True
        return call


class Calls(Generic[Owner]):
    """Used by one thread, which submits calls and fetches those that are finished.

    timeout: seconds that a blocking call has, from when it starts.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._waiting: deque[Call[Owner]] = deque()
        self._running: list[Call[Owner]] = []
        self._hanging: list[Call[Owner]] = []
        self._ended: list[Call[Owner]] = []
        self._wake = threading.Event()

    def submit(self, owner: Owner, function: Callable[[], object], blocking: bool) -> None:
        self._waiting.append(Call(owner, function, blocking))

    def finished(self) -> list[Call[Owner]]:
        """Starts what can start, runs what does not block, and returns the calls that have ended, once each."""
        self._wake.clear()
        now = time.monotonic()
        self._fetch(now)
        held_back = []
        while self._waiting:
            # An interrupted call stays first in line, and what has ended is kept.
            call = self._waiting[0]
            if not call.blocking:
                call.run()
                self._ended.append(call)
            elif len(self._running) < _AT_ONCE:
                self._start(call, now)
            else:
                held_back.append(call)
            self._waiting.popleft()
        self._waiting.extend(held_back)
        ended, self._ended = self._ended, []
        return ended

    def _fetch(self, now: float) -> None:
        """Takes calls that have ended or overrun out of those that run."""
        running = []
        for call in self._running:
            if call.done:
                self._ended.append(call)
            elif now - call.started < self._timeout:
                running.append(call)
            else:
                self._hanging.append(call)
                self._ended.append(call.given_up(f"the dispatcher took longer than {self._timeout:g} s"))
        self._running = running

    def wait(self, seconds: float) -> None:
        """Returns when a call ends, or after so long."""
        if self._running:
            self._wake.wait(seconds)

    def _start(self, call: Call[Owner], now: float) -> None:
        self._hanging = [one for one in self._hanging if not one.done]
        if len(self._hanging) >= _MOST_HANGING:
            reason = f"{len(self._hanging)} earlier calls of dispatchers hang: no more are started"
            self._ended.append(call.given_up(reason))
            return
        call.started = now
        self._running.append(call)
        threading.Thread(target=self._run, args=(call,), name="zweave-dispatch", daemon=True).start()

    def _run(self, call: Call[Owner]) -> None:
        call.run()
        self._wake.set()
