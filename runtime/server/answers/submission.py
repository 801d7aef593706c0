"""One request in the engine, given to it again if its expert came anew before the answer had begun."""

from collections.abc import AsyncIterator

from ...engine.delta_stream import DeltaStream
from ...errors import ZweaveError
from ...experts.resolved_mixture import Entry
from ...request import Delta, Request
from ..served import Served


class Submission:
    """The deltas of a request.

    Between the look-up of its expert and the request's first step the expert may be unloaded, and its file replaced:
    then the request is answered under what is there now.
    """

    def __init__(self, served: Served, request: Request) -> None:
        self._served = served
        self._request = request
        self._experts: list[Entry] = []
        self._stream: DeltaStream | None = None
        self._failure: Exception | None = None

    @property
    def request_id(self) -> int | None:
        """The engine's, None if it has not taken the request up."""
        return None if self._stream is None else self._stream.request_id

    async def start(self) -> None:
        """Gives the request to the engine; ZweaveError if that refuses it, ApiError 404 if its expert is gone."""
        while True:
            self._experts = self._served.registered(self._request.mixture)
            try:
                self._stream = await self._served.serving.submit(self._request)
            except ZweaveError:
                if not await self._is_renewed():
                    raise
            else:
                break
        if self._failure is not None:
            self._stream.put(self._failure)

    async def deltas(self) -> AsyncIterator[Delta]:
        """What each step adds to the answers."""
        assert self._stream is not None
        has_begun = False
        while True:
            async for delta in self._stream:
                has_failed = delta.result is not None and delta.result.finish_reason == "error"
                if has_failed and not has_begun and await self._is_renewed():
                    break
                has_begun = has_begun or bool(delta.token_ids)
                yield delta
            else:
                return
            self._stream.close()
            await self.start()

    async def _is_renewed(self) -> bool:
        """Whether other experts than before have the names that the request asks for; loads them."""
        return await self._served.find(self._request.mixture) != self._experts

    def fail(self, error: Exception) -> None:
        """Ends the deltas with an error."""
        self._failure = error
        if self._stream is not None:
            self._stream.put(error)

    def close(self) -> None:
        """Cancels the request, unless it has ended."""
        if self._stream is not None:
            self._stream.close()
