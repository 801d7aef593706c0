"""An engine for asyncio: one thread computes, coroutines add requests and read their answers."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import suppress

from ..errors import ZweaveError
from ..request import Delta, Request, Result
from .engine import Engine


class AsyncEngine:
    """Serves an engine to coroutines: `async with AsyncEngine(engine) as serving:`.

    Until it is closed the engine cannot be used directly, except to load and unload experts; nor can it be in a forked
    child. Cancelling a coroutine cancels its request. Raises ZweaveError if another thread uses the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._commands: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._listeners: dict[int, Callable[[Delta | BaseException], object]] = {}
        self._closing = False
        self._closed = False
        # Held while commands are added and while the engine closes, so that none is added to a closed one.
        self._lock = threading.Lock()
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(started,), name="zweave-engine", daemon=True)
        self._thread.start()
        started.result()

    async def __aenter__(self) -> "AsyncEngine":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def generate(self, request: Request) -> Result:
        """Answers one request; many may run at once and share the engine's batches."""
        answers = {
            delta.sample: delta.result async for delta in self.stream(request) if delta.result is not None
        }
        return Result.of_samples([answers[sample] for sample in sorted(answers)])

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        """Yields what each step adds to the answer, or the answers; leaving the loop early cancels the request."""
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[Delta | BaseException] = asyncio.Queue()
        request_ids: list[int] = []

        def deliver(item: Delta | BaseException) -> None:
            # The caller's loop may have been closed by now; nobody waits then.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(deltas.put_nowait, item)

        def add() -> None:
            try:
                request_ids.append(self.engine.add(request))
            except Exception as error:
                deliver(error)
            else:
                self._listeners[request_ids[0]] = deliver

        def cancel() -> None:
            for request_id in request_ids:
                self._listeners.pop(request_id, None)
                self.engine.cancel(request_id)

        if not self._submit(add):
            raise ZweaveError("the engine is closed: make a new AsyncEngine")
        num_finished = 0
        try:
            while True:
                item = await deltas.get()
                if isinstance(item, BaseException):
                    raise item
                num_finished += item.result is not None
                yield item
                if num_finished == request.n:
                    return
        finally:
            self._submit(cancel)

    async def close(self) -> None:
        """Stops the thread after the step in flight; unfinished requests end with an error."""
        self._submit(self._close)
        await asyncio.to_thread(self._thread.join)

    def _submit(self, command: Callable[[], object]) -> bool:
        """Queues a command that the thread runs before its next step; False if the engine is closed.

        Raises ZweaveError in a forked child, which has no such thread.
        """
        self.engine.guard.check_process()
        with self._lock:
            if not self._closed:
                self._commands.put(command)
            return not self._closed

    def _close(self) -> None:
        self._closing = True

    def _work(self, started: "Future[None]") -> None:
        try:
            with self.engine.guard.exclusive():
                started.set_result(None)
                self._serve()
        except ZweaveError as error:
            started.set_exception(error)

    def _serve(self) -> None:
        failure: BaseException = ZweaveError("the engine was closed before the request was done")
        try:
            while not self._closing:
                self._run_commands(wait=not self.engine.has_work)
                if self.engine.has_work:
                    self._deliver(self.engine.step())
        except BaseException as error:
            failure = error
        with self._lock:
            self._closed = True
        self._run_commands(wait=False)
        abandoned = dict(self._listeners)
        for listener in abandoned.values():
            listener(failure)
        for request_id in abandoned:
            self.engine.cancel(request_id)

    def _deliver(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            listener = self._listeners.get(delta.request_id)
            if listener is not None:
                listener(delta)

    def _run_commands(self, wait: bool) -> None:
        if wait:
            self._commands.get()()
        while not self._commands.empty():
            self._commands.get()()
