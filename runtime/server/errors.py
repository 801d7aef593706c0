"""Errors as OpenAI's API has them: a status, and one line that says what is wrong."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from ..errors import ZweaveError

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

_MAX_CHARACTERS = 500


class ApiError(HTTPException):
    """Ends a request with a status and a message."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.message = message


def error_body(status: int, message: str) -> dict[str, Any]:
    """The JSON of an error; its message is one line of a bounded length, whatever of a body it quotes."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    words = " ".join(message[: 2 * _MAX_CHARACTERS].split())
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)
    if len(line) > _MAX_CHARACTERS:
        line = f"{line[: _MAX_CHARACTERS - 3]}..."
    return {"error": {"message": line, "type": kind, "param": None, "code": status}}


def install(app: FastAPI, told: Callable[[str], str]) -> None:
    """Has the app answer every error in this form.

    told: what clients may read of a message.
    """

    def answer(status: int, message: str, headers: Any = None) -> JSONResponse:
        return JSONResponse(error_body(status, told(message)), status, headers)

    @app.exception_handler(ZweaveError)
    async def _refused(_: Request, error: ZweaveError) -> JSONResponse:
        return answer(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def _malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(400, _described(error.errors()))

    @app.exception_handler(StarletteHTTPException)
    async def _http(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def _fault(_: Request, error: Exception) -> JSONResponse:
        return answer(500, f"the server failed: {type(error).__name__}")


def _described(errors: Any) -> str:
    """One of the faults that pydantic found, where it is and what: a length that is too large, or else the deepest."""
    first = max(errors, key=lambda error: (error["type"].endswith("too_long"), len(error["loc"])))
    place = ".".join(str(part) for part in first["loc"] if not _is_tag(part))
    if not place and first["type"] in ("missing", "model_attributes_type"):
        return "the body must be a JSON object, sent with the header Content-Type: application/json"
    if first["type"] == "extra_forbidden":
        return f"{place}: there is no such field"
    return f"{place}: {first['msg']}" if place else first["msg"]


def _is_tag(part: object) -> bool:
    """Whether a part of a place is pydantic's name of a type, or says that it is in the body."""
    text = str(part)
    is_type = text in ("str", "int", "float", "constrained-str") or "[" in text
    return is_type or text in ("body", "query") or text[:1].isupper()
