"""Answers as server-sent events."""

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

import anyio
from fastapi.responses import StreamingResponse

from ...errors import ZweaveError, one_line
from ...request import Delta, Result
from ..errors import ApiError, error_body
from .answering import Answering


class Chunks(Protocol):
    """The chunks of one kind of response."""

    includes_usage: bool

    def opening(self, index: int) -> dict[str, Any] | None:
        """Goes before a choice's first delta."""
        ...

    def chunks(self, index: int, delta: Delta) -> Iterable[dict[str, Any]]:
        """What a delta adds."""
        ...

    def usage(self, results: list[Result]) -> dict[str, Any]:
        """The last chunk."""
        ...


async def event_stream(answering: Answering, chunks: Chunks) -> StreamingResponse:
    """The response; errors before the first chunk are raised, later ones are sent as an event."""
    await answering.start()
    return _Events(_events(answering, chunks), answering)


class _Events(StreamingResponse):
    """Cancels the requests when it ends, even if nothing of it was ever sent.

    A client that does not read is left when its requests' time is up twice over: once to answer, once to read.
    """

    def __init__(self, events: AsyncIterator[str], answering: Answering) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answering = answering

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            with anyio.move_on_after(2 * self._answering.timeout):
                await super().__call__(scope, receive, send)
        finally:
            self._answering.close()


async def _events(answering: Answering, chunks: Chunks) -> AsyncIterator[str]:
    for index in range(answering.num_choices):
        opening = chunks.opening(index)
        if opening is not None:
            yield _event(opening)
    try:
        async for index, delta in answering.deltas():
            for chunk in chunks.chunks(index, delta):
                yield _event(chunk)
        if chunks.includes_usage:
            yield _event(chunks.usage([result for result in answering.results if result is not None]))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error_body(error.status_code, answering.told(error.message)))
    except ZweaveError as error:
        yield _event(error_body(500, answering.told(one_line(error))))


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
