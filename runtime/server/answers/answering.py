"""From requests to their deltas: admitted, timed, and cancelled when the client goes."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from fastapi import Request as HttpRequest

from ...request import Delta, Request, Result
from ..errors import ApiError
from ..served import Served, kind_of
from .submission import Submission


class Answering:
    """The answers to the requests of one body, while they are computed.

    requests: of as many answers each.
    response_id: by which the client names the response.

    num_choices: answers to all requests, in their order.
    timeout: seconds that they may take.
    results: of each choice, None while it is not there.
    told: what the client may read of a message.
    """

    def __init__(self, served: Served, requests: Sequence[Request], response_id: str) -> None:
        self.requests = requests
        self.num_choices = sum(request.n for request in requests)
        self.timeout = served.settings.request_timeout
        self.results: list[Result | None] = [None] * self.num_choices
        self.told = served.told
        self._served, self._response_id = served, response_id
        self._num_unfinished = self.num_choices
        self._admitted = served.admission.admit(self.num_choices)
        self._started = time.perf_counter()
        self._timer: asyncio.TimerHandle | None = None
        self._submissions = [Submission(served, request) for request in requests]

    async def start(self) -> None:
        """Gives the requests to the engine; ApiError or ZweaveError if one cannot be taken up, then none is."""
        if self._served.serving.closed:
            raise ApiError(503, "the engine has stopped: the server has to be started again")
        self._admitted.__enter__()
        tasks: list[asyncio.Future[None]] = []
        try:
            if any(request.response_format is not None for request in self.requests):
                # It is compiled here, and is there when the engine's thread wants it.
                first = await self._served.serving.named(self.requests[0])
                await asyncio.to_thread(self._served.engine.check, first)
            tasks += [asyncio.ensure_future(submission.start()) for submission in self._submissions]
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.close()
            raise
        self._served.running.begin(self._response_id, self.requests[0].salt, self._request_ids)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.timeout, self._time_out)

    def _request_ids(self) -> list[int]:
        """The engine's, of those that it has taken up."""
        found = (submission.request_id for submission in self._submissions)
        return [request_id for request_id in found if request_id is not None]

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Yields (choice, delta) as they come. Ends with all results; ApiError if one fails or time is up."""
        if len(self._submissions) == 1:
            async for item in self._one(0):
                yield item
            return
        queue: asyncio.Queue[tuple[int, Delta] | BaseException] = asyncio.Queue()

        async def forward(index: int) -> None:
            try:
                async for found in self._one(index):
                    queue.put_nowait(found)
            except Exception as error:
                queue.put_nowait(error)

        tasks = [asyncio.ensure_future(forward(index)) for index in range(len(self._submissions))]
        try:
            while self._num_unfinished or not queue.empty():
                arrived = await queue.get()
                if isinstance(arrived, BaseException):
                    raise arrived
                yield arrived
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, index: int) -> AsyncIterator[tuple[int, Delta]]:
        """The deltas of one request, with the choices that they belong to."""
        request, last = self.requests[index], dict[int, float]()
        async for delta in self._submissions[index].deltas():
            now = time.perf_counter()
            choice = index * request.n + delta.sample
            if delta.token_ids:
                before = last.get(choice)
                self._served.metrics.on_tokens(now - (before or self._started), before is None)
                last[choice] = now
            if delta.result is not None:
                self.results[choice] = delta.result
                self._note(delta.result, request, now - self._started)
            yield choice, delta

    def _note(self, result: Result, request: Request, seconds: float) -> None:
        self._num_unfinished -= 1
        if not self._num_unfinished:
            self._served.running.end(self._response_id)
        self._served.metrics.on_result(result, kind_of(request), seconds)
        self._served.admission.note(seconds)
        if result.finish_reason == "error":
            raise ApiError(400, result.error or "the request failed")

    def _time_out(self) -> None:
        error = ApiError(504, f"the request took more than {self.timeout:g} seconds, this server's limit")
        for submission in self._submissions:
            submission.fail(error)

    def close(self) -> None:
        """Cancels what is not answered; needed once after `start`."""
        self._served.running.end(self._response_id)
        if self._timer is not None:
            self._timer.cancel()
        for submission in self._submissions:
            submission.close()
        self._admitted.__exit__(None, None, None)


async def answered(answering: Answering, http: HttpRequest) -> list[Result]:
    """All results; the requests are cancelled if the client goes before."""
    await answering.start()
    work = asyncio.ensure_future(_collect(answering))
    gone = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(499, "the client has gone")
        return work.result()
    finally:
        gone.cancel()
        work.cancel()
        with suppress(BaseException):
            await work
        answering.close()


async def _collect(answering: Answering) -> list[Result]:
    async for _ in answering.deltas():
        pass
    return [result for result in answering.results if result is not None]


async def _disconnected(http: HttpRequest) -> None:
    """Returns when the client has gone; its body was read before."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
