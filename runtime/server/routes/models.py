"""/v1/models: the base model, its experts, aliases, and "auto"."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from ...errors import shortened
from ..errors import ApiError
from ..json_route import JsonRoute
from ..served import Served, served

router = APIRouter(tags=["models"], route_class=JsonRoute)


@router.get("/v1/models")
async def models(http: HttpRequest) -> dict[str, Any]:
    """What `model` may name."""
    server = served(http)
    return {"object": "list", "data": [_model(server, name) for name in _names(server)]}


@router.get("/v1/models/{name:path}")
async def model(name: str, http: HttpRequest) -> dict[str, Any]:
    """One of them."""
    server = served(http)
    if name not in _names(server):
        raise ApiError(404, f"there is no model {shortened(name)}: GET /v1/models lists them")
    return _model(server, name)


def _names(server: Served) -> list[str]:
    """In the order of the list; what the directory holds and is not loaded yet goes last."""
    names = [server.settings.model_name, *server.settings.aliases, *server.engine.experts()]
    if server.engine.dispatcher is not None:
        names.append("auto")
    if server.directory is not None:
        names += server.directory.names()
    return list(dict.fromkeys(names))


def _model(server: Served, name: str) -> dict[str, Any]:
    base = server.settings.model_name
    return {
        "id": name,
        "object": "model",
        "created": server.started,
        "owned_by": "zweave",
        "root": base,
        "parent": None if name == base else base,
        "max_model_len": server.engine.max_length,
        "zweave": _facts(server, name),
    }


def _facts(server: Served, name: str) -> dict[str, Any]:
    """What kind of model it is, and of an expert what its file says."""
    if name == server.settings.model_name:
        return {"kind": "base"}
    if name in server.settings.aliases:
        return {"kind": "alias", "expert": server.settings.aliases[name]}
    if name == "auto":
        return {"kind": "auto"}
    if name not in server.engine.experts():
        return {"kind": "expert", "loaded": False}
    entry = server.engine.bank.registered(name)
    return {
        "kind": "expert",
        "loaded": True,
        "description": entry.description,
        "scope": entry.scope,
        "first_layer": entry.first_layer,
        "digest": entry.digest,
        "own_words": entry.prompt_template is not None,
    }
