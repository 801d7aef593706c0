"""Reads bodies up to a size."""

from fastapi import Request

from .errors import ApiError


async def limited_body(http: Request, most: int, what: str) -> bytes:
    """The body; ApiError 413 as soon as it is known to be larger, so that no more of it is held.

    most: bytes.
    what: how large it may be, for the message.
    """
    too_large = ApiError(413, f"the body is larger than {what} ({most} bytes)")
    if int(http.headers.get("content-length") or 0) > most:
        raise too_large
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > most:
            raise too_large
    return bytes(body)
