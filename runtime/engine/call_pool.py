"""Calls that may block: each on a thread of its own, abandoned when it takes too long.

Not an executor of the standard library: that gives a hanging call no limit, and waits for it when the program ends.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ..errors import ZweaveError, one_line

Owner = TypeVar("Owner")

_MAX_RUNNING = 16
# Abandoned threads, which may never end.
_MAX_HANGING = 256


class PendingCall(Generic[Owner]):
    """A call and its outcome.

    owner: whom the outcome is for.
    result: what the function returned.
    error: one line on why there is no result; None if there is one.
    """

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
        # It may be a user's program: it can fail in any way, and want to end ours.
        except (Exception, SystemExit) as error:
            self.error = f"the dispatcher fails: {one_line(error, with_type=True)}"
        self.done = True

    def abandoned(self, reason: str) -> "PendingCall[Owner]":
        """A failed call in place of this one, whose thread goes on and may still write to it."""
        call = PendingCall(self.owner, self._function, self.blocking)
        call.error, call.done = reason, True
        return call


class CallPool(Generic[Owner]):
    """Runs calls for one thread, which submits and polls them.

    timeout: seconds that a blocking call may take from its start.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._waiting: deque[PendingCall[Owner]] = deque()
        self._running: list[PendingCall[Owner]] = []
        self._hanging: list[PendingCall[Owner]] = []
        self._ended: list[PendingCall[Owner]] = []
        self._is_calling = False
        self._wake = threading.Event()

    def submit(self, owner: Owner, function: Callable[[], object], blocking: bool) -> None:
        self._waiting.append(PendingCall(owner, function, blocking))

    def poll(self) -> list[PendingCall[Owner]]:
        """Starts blocking calls, runs the others, and returns the calls that have ended, each of them once.

        Raises ZweaveError if it is called by one of these calls, which would wait for itself.
        """
        if self._is_calling:
            raise ZweaveError("a dispatcher asks the engine that waits for it: give it an engine of its own")
        self._wake.clear()
        now = time.monotonic()
        self._fetch(now)
        held_back = []
        while self._waiting:
            # Popped last, so that after an interrupt this call runs again and the ended ones are kept.
            call = self._waiting[0]
            if not call.blocking:
                self._run_here(call)
            elif len(self._running) < _MAX_RUNNING:
                self._start(call, now)
            else:
                held_back.append(call)
            # The call may have cancelled its own request.
            if self._waiting and self._waiting[0] is call:
                self._waiting.popleft()
        self._waiting.extend(held_back)
        ended, self._ended = self._ended, []
        return ended

    def drop(self, owner: Owner) -> None:
        """Forgets the calls of an owner that have not begun."""
        self._waiting = deque(call for call in self._waiting if call.owner is not owner)

    def _run_here(self, call: PendingCall[Owner]) -> None:
        self._is_calling = True
        try:
            call.run()
        finally:
            self._is_calling = False
        self._ended.append(call)

    def _fetch(self, now: float) -> None:
        """Moves calls that have ended or timed out from the running to the ended ones."""
        running = []
        for call in self._running:
            if call.done:
                self._ended.append(call)
            elif now - call.started < self._timeout:
                running.append(call)
            else:
                self._hanging.append(call)
                self._ended.append(call.abandoned(f"the dispatcher took longer than {self._timeout:g} s"))
        self._running = running

    def wait(self, seconds: float) -> None:
        """Returns when a running call ends, or after so many seconds."""
        if self._running:
            self._wake.wait(seconds)

    def _start(self, call: PendingCall[Owner], now: float) -> None:
        self._hanging = [one for one in self._hanging if not one.done]
        if len(self._hanging) >= _MAX_HANGING:
            reason = f"{len(self._hanging)} earlier calls of dispatchers hang: no more are started"
            self._ended.append(call.abandoned(reason))
            return
        call.started = now
        self._running.append(call)
        threading.Thread(target=self._run, args=(call,), name="zweave-dispatch", daemon=True).start()

    def _run(self, call: PendingCall[Owner]) -> None:
        call.run()
        self._wake.set()
