"""An engine for asyncio: one thread computes, coroutines add requests and read their answers."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from ..describe.description import Description
from ..errors import ZweaveError
from ..request import Delta, Request, Result
from .delta_stream import DeltaStream
from .engine import Engine

T = TypeVar("T")


class AsyncEngine:
    """Serves an engine to coroutines: `async with AsyncEngine(engine) as serving:`.

    Until it is closed the engine cannot be used directly, except to load and unload experts and to rescale; nor can it
    be in a forked child. Cancelling a coroutine cancels its request. Raises ZweaveError if another thread uses the
    engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._commands: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._streams: dict[int, DeltaStream] = {}
        self._closing = False
        self._closed = False
        # Held while commands are added and while the engine closes, so that none is added to a closed one.
        self._lock = threading.Lock()
        # One at a time: more would only wait for each other, in threads that others need.
        self._describing = ThreadPoolExecutor(1, "zweave-describe")
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(started,), name="zweave-engine", daemon=True)
        self._thread.start()
        started.result()

    async def __aenter__(self) -> "AsyncEngine":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """Whether the engine takes no more requests: it was closed, or a step has failed."""
        return self._closed

    async def generate(self, request: Request) -> Result:
        """Answers one request; many may run at once and share the engine's batches."""
        answers = {
            delta.sample: delta.result async for delta in self.stream(request) if delta.result is not None
        }
        return Result.of_samples([answers[sample] for sample in sorted(answers)])

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        """Yields what each step adds to the answer, or the answers; leaving the loop early cancels the request."""
        deltas = await self.submit(request)
        try:
            async for delta in deltas:
                yield delta
        finally:
            deltas.close()

    async def submit(self, request: Request) -> DeltaStream:
        """Queues a request; returns its deltas when the engine has taken it up. Closing them cancels it.

        Raises ZweaveError if the engine refuses the request or is closed.
        """

        def add() -> None:
            try:
                stream.request_id = self.engine.add(request)
            except Exception as error:
                _deliver([(stream, error)])
            else:
                self._streams[stream.request_id] = stream
                _deliver([(stream, None)])

        def cancel() -> None:
            if stream.request_id is not None:
                self._streams.pop(stream.request_id, None)
                self.engine.cancel(stream.request_id)

        # Descriptions become experts and a LoRA's file is read here: the engine's thread would hold up all others.
        request = await self.named(request)
        if unread := self.engine.bank.unread(request.mixture):
            with suppress(ZweaveError):  # which the engine says of the request
                await asyncio.to_thread(self.engine.bank.prepare, unread)
        stream = DeltaStream(request.n, asyncio.get_running_loop(), lambda: self._submit(cancel))
        if not self._submit(add):
            raise _closed()
        try:
            await stream.accepted
        except BaseException:
            stream.close()
            raise
        return stream

    async def named(self, request: Request) -> Request:
        """As `Engine.named`, beside the engine's thread, and one after the other."""
        return await self._describe(lambda: self.engine.named(request)) if request.is_described else request

    async def name_of(self, description: Description) -> str:
        """As `Engine.load_description`, in the same way."""
        return await self._describe(lambda: self.engine.load_description(description.text))

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

    async def _describe(self, make: Callable[[], T]) -> T:
        """What a call makes of descriptions, after those before it; ZweaveError if the engine is closed by then."""

        def unless_closed() -> T:
            if self._closed:
                raise _closed()
            return make()

        return await asyncio.get_running_loop().run_in_executor(self._describing, unless_closed)

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
                    self._hand_out(self.engine.step())
        except BaseException as error:
            failure = error
        with self._lock:
            self._closed = True
        self._run_commands(wait=False)
        abandoned, self._streams = self._streams, {}
        _deliver((stream, failure) for stream in abandoned.values())
        for request_id in abandoned:
            self.engine.cancel(request_id)

    def _hand_out(self, deltas: list[Delta]) -> None:
        items = []
        for delta in deltas:
            stream = self._streams.get(delta.request_id)
            if stream is not None:
                items.append((stream, delta))
        _deliver(items)

    def _run_commands(self, wait: bool) -> None:
        if wait:
            self._commands.get()()
        while not self._commands.empty():
            self._commands.get()()


def _closed() -> ZweaveError:
    return ZweaveError("the engine is closed: make a new AsyncEngine")


def _deliver(items: Iterable[tuple[DeltaStream, Delta | BaseException | None]]) -> None:
    """Wakes each event loop once for all that a step has for its coroutines."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[DeltaStream, Delta | BaseException | None]]] = {}
    for stream, item in items:
        by_loop.setdefault(stream.loop, []).append((stream, item))
    for loop, of_loop in by_loop.items():
        # The caller's loop may have been closed by now; nobody waits then.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_put_all, of_loop)


def _put_all(items: Iterable[tuple[DeltaStream, Delta | BaseException | None]]) -> None:
    for stream, item in items:
        stream.put(item)
