"""/: a page to try the server out."""

from importlib.resources import files

from fastapi import APIRouter, Response

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
async def page() -> Response:
    """The page."""
    return _served("index.html")


@router.get("/playground/{name}")
async def asset(name: str) -> Response:
    """What the page loads."""
    if name not in {file.name for file in _FOLDER.iterdir()}:
        raise ApiError(404, f"the playground has no {name!r}")
    return _served(name)


def _served(name: str) -> Response:
    kind = _TYPES[name[name.rindex(".") :]]
    return Response((_FOLDER / name).read_bytes(), media_type=f"{kind}; charset=utf-8", headers=_HEADERS)
