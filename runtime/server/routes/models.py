"""/v1/models: the base model, its experts and LoRAs, aliases, and "auto"."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from ...errors import shortened
from ...experts.lora_entry import LoraEntry
from ..errors import ApiError
from ..json_route import JsonRoute
from ..served import Served, served

router = APIRouter(tags=["models"], route_class=JsonRoute)


@router.get("/v1/models", response_model=None)
def models(http: HttpRequest) -> JSONResponse:
    """What `model` may name."""
    server = served(http)
    known = _Known(server)
    return JSONResponse({"object": "list", "data": [_model(server, name, known) for name in known.names]})


@router.get("/v1/models/{name:path}", response_model=None)
def model(name: str, http: HttpRequest) -> JSONResponse:
    """One of them."""
    server = served(http)
    known = _Known(server)
    if name not in (*server.base_names, *known.names):
        raise ApiError(404, f"there is no model {shortened(name)}: GET /v1/models lists them")
    return JSONResponse(_model(server, name, known))


class _Known:
    """What a server can serve now.

    names: in the order of the list; what the directory holds and is not loaded yet goes last.
    loaded: experts by name.
    in_directory: kinds by name.
    """

    def __init__(self, server: Served) -> None:
        self.loaded = {entry.name: entry for entry in server.entries()}
        self.in_directory = {} if server.directory is None else server.directory.kinds()
        auto = [] if server.engine.dispatcher is None else ["auto"]
        names = [server.settings.model_name, *server.settings.aliases, *self.loaded, *auto]
        self.names = list(dict.fromkeys([*names, *self.in_directory]))


def _model(server: Served, name: str, known: _Known) -> dict[str, Any]:
    base = server.settings.model_name
    return {
        "id": name,
        "object": "model",
        "created": server.started,
        "owned_by": "zweave",
        "root": base,
        "parent": None if name in server.base_names else base,
        "max_model_len": server.engine.max_length,
        "zweave": _facts(server, name, known),
    }


def _facts(server: Served, name: str, known: _Known) -> dict[str, Any]:
    """What kind of model it is, and of an expert or a LoRA what its files say."""
    if name in server.base_names:
        return {"kind": "base"} | ({"describes": True} if server.engine.has_generator else {})
    if name in server.settings.aliases:
        return {"kind": "alias", "expert": server.settings.aliases[name]}
    if name == "auto":
        return {"kind": "auto"}
    entry = known.loaded.get(name)
    if entry is None:
        return {"kind": known.in_directory[name], "loaded": False}
    return {
        "kind": entry.kind,
        "loaded": True,
        **({"rank": entry.rank} if isinstance(entry, LoraEntry) else {}),
        "description": entry.description,
        "scope": entry.scope,
        "first_layer": entry.first_layer,
        "digest": entry.digest,
        "own_words": entry.prompt_template is not None,
    }
