"""Reads bodies up to a size."""

import anyio
from fastapi import Request
from starlette.requests import ClientDisconnect

from .errors import ApiError


async def limited_body(http: Request, most: int, what: str, seconds: float) -> bytes:
    """The body; ApiError 413 as soon as it is known to be larger, so that no more of it is held.

    http: of a JsonRoute; ApiError 429 if the bodies of all requests are too many.
    most: bytes.
    what: how large it may be, for the message.
    seconds: in which it has to be there; ApiError 408 after them.
    """
    try:
        with anyio.fail_after(seconds):
            return await _read(http, most, ApiError(413, f"the body is larger than {what} ({most} bytes)"))
    except TimeoutError:
        raise ApiError(408, f"the body was not there within {seconds:g} seconds") from None
    except ClientDisconnect:
        raise ApiError(499, "the client has gone") from None


async def _read(http: Request, most: int, too_large: ApiError) -> bytes:
    if int(http.headers.get("content-length") or 0) > most:
        raise too_large
    body = bytearray()
    async for part in http.stream():
        http.state.held_body.grow(len(part))
        body += part
        if len(body) > most:
            raise too_large
    return bytes(body)
