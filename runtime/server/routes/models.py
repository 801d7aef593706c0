"""/v1/models: the base model, its experts, aliases, and "auto"."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from ...errors import shortened
from ...experts.bank import Entry
from ..errors import ApiError
from ..json_route import JsonRoute
from ..served import Served, served

router = APIRouter(tags=["models"], route_class=JsonRoute)


@router.get("/v1/models", response_model=None)
def models(http: HttpRequest) -> JSONResponse:
    """What `model` may name."""
    server = served(http)
    loaded = _loaded(server)
    return JSONResponse(
        {"object": "list", "data": [_model(server, name, loaded) for name in _names(server, loaded)]}
    )


@router.get("/v1/models/{name:path}", response_model=None)
def model(name: str, http: HttpRequest) -> JSONResponse:
    """One of them."""
    server = served(http)
    loaded = _loaded(server)
    if name not in (*server.base_names, *_names(server, loaded)):
        raise ApiError(404, f"there is no model {shortened(name)}: GET /v1/models lists them")
    return JSONResponse(_model(server, name, loaded))


def _names(server: Served, loaded: Iterable[str]) -> list[str]:
    """In the order of the list; what the directory holds and is not loaded yet goes last."""
    names = [server.settings.model_name, *server.settings.aliases, *loaded]
    if server.engine.dispatcher is not None:
        names.append("auto")
    if server.directory is not None:
        names += server.directory.names()
    return list(dict.fromkeys(names))


def _loaded(server: Served) -> dict[str, Entry]:
    return {entry.name: entry for entry in server.engine.bank.entries()}


def _model(server: Served, name: str, loaded: Mapping[str, Entry]) -> dict[str, Any]:
    base = server.settings.model_name
    return {
        "id": name,
        "object": "model",
        "created": server.started,
        "owned_by": "zweave",
        "root": base,
        "parent": None if name in server.base_names else base,
        "max_model_len": server.engine.max_length,
        "zweave": _facts(server, name, loaded),
    }


def _facts(server: Served, name: str, loaded: Mapping[str, Entry]) -> dict[str, Any]:
    """What kind of model it is, and of an expert what its file says."""
    if name in server.base_names:
        return {"kind": "base"}
    if name in server.settings.aliases:
        return {"kind": "alias", "expert": server.settings.aliases[name]}
    if name == "auto":
        return {"kind": "auto"}
    entry = loaded.get(name)
    if entry is None:
        return {"kind": "expert", "loaded": False}
    return {
        "kind": "expert",
        "loaded": True,
        "description": entry.description,
        "scope": entry.scope,
        "first_layer": entry.first_layer,
        "digest": entry.digest,
        "own_words": entry.prompt_template is not None,
    }
