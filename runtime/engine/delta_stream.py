"""The deltas of one request, handed from the engine's thread to a coroutine."""

import asyncio
from collections import deque
from collections.abc import Callable

from ..request import Delta


class DeltaStream:
    """An asynchronous iterator over what each step adds to a request's answers; closing it early cancels the request.

    num_answers: of the request.
    loop: the event loop of the coroutine that reads it. All but the constructor is called there.
    on_close: called once, when nobody reads any more.
    accepted: done when the engine has taken the request up, or refused it.
    request_id: the engine's, once it has taken the request up.
    """

    def __init__(
        self, num_answers: int, loop: asyncio.AbstractEventLoop, on_close: Callable[[], object]
    ) -> None:
        self.loop = loop
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.request_id: int | None = None
        self._num_unfinished = num_answers
        self._on_close = on_close
        self._items: deque[Delta | BaseException] = deque()
        self._wakeup: asyncio.Future[None] | None = None
        self._closed = False

    def put(self, item: Delta | BaseException | None) -> None:
        """Takes what the engine delivers: a delta, the reason why there will be none, or None for its acceptance."""
        if not self.accepted.done():
            if isinstance(item, BaseException):
                self.accepted.set_exception(item)
            else:
                self.accepted.set_result(None)
        elif isinstance(item, BaseException) or item is not None:
            self._items.append(item)
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def __aiter__(self) -> "DeltaStream":
        return self

    async def __anext__(self) -> Delta:
        if self._closed:
            raise StopAsyncIteration
        while not self._items:
            self._wakeup = self.loop.create_future()
            await self._wakeup
        item = self._items.popleft()
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._num_unfinished -= item.result is not None
        if not self._num_unfinished:
            self.close()
        return item

    def close(self) -> None:
        """Cancels the request, unless it has ended."""
        if not self._closed:
            self._closed = True
            self._on_close()
