"""/: a page to try the server out."""

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from ..errors import ApiError

router = APIRouter(include_in_schema=False)

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_FOLDER = files("zweave.server") / "playground"


@router.get("/")
async def page(http: HttpRequest) -> Response:
    """The page."""
    return _served("index.html", http)


@router.get("/playground/{name}")
async def asset(name: str, http: HttpRequest) -> Response:
    """What the page loads."""
    if name not in {file.name for file in _FOLDER.iterdir()}:
        raise ApiError(404, f"the playground has no {name!r}")
    return _served(name, http)


def _served(name: str, http: HttpRequest) -> Response:
    """A file, or that it is the one which the browser has."""
    content = (_FOLDER / name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = _HEADERS | {"ETag": tag}
    if tag in http.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    kind = _TYPES[name[name.rindex(".") :]]
    return Response(content, media_type=f"{kind}; charset=utf-8", headers=headers)
