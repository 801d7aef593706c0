"""/v1/experts, and vLLM's names for the same: experts that come and go while the server runs."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from fastapi import Request as HttpRequest

from ...errors import shortened
from ...experts.mixture import check_name
from ..errors import ApiError
from ..json_route import AdminRoute, JsonRoute
from ..limited_body import limited_body
from ..protocol.lora import LoadBody, UnloadBody
from ..served import Served, served

router = APIRouter(tags=["experts"], route_class=JsonRoute)
admin_router = APIRouter(tags=["experts"], route_class=AdminRoute)


@router.get("/v1/experts")
async def experts(http: HttpRequest) -> dict[str, Any]:
    """The loaded experts."""
    server = served(http)
    entries = [server.engine.bank.registered(name) for name in server.engine.experts()]
    return {
        "experts": [
            {
                "name": entry.name,
                "digest": entry.digest,
                "scope": entry.scope,
                "first_layer": entry.first_layer,
                "description": entry.description,
            }
            for entry in entries
        ]
    }


@admin_router.post("/v1/experts", status_code=201)
async def load(
    http: HttpRequest,
    name: Annotated[str, Query(max_length=255)],
) -> dict[str, Any]:
    """Loads the safetensors file in the body under a name; a known name is replaced for new requests."""
    server = served(http)
    check_name(name)
    _check_not_taken(server, name)
    body = await limited_body(http, server.uploads.largest, "an expert for this model can be")
    await asyncio.to_thread(server.uploads.add, name, body)
    return _loaded(server, name)


@admin_router.delete("/v1/experts/{name:path}")
async def unload(name: str, http: HttpRequest) -> dict[str, Any]:
    """Forgets an expert; requests that run under it go on."""
    server = served(http)
    return _unload(server, name)


@admin_router.post("/v1/load_lora_adapter")
async def load_from_directory(body: Annotated[LoadBody, Body()], http: HttpRequest) -> dict[str, Any]:
    """Loads an expert file of the server's directory of experts; vLLM's call for adapters."""
    server = served(http)
    check_name(body.lora_name)
    _check_not_taken(server, body.lora_name)
    if body.lora_name in server.engine.experts() and not body.load_inplace:
        raise ApiError(400, f"{body.lora_name!r} is loaded already: unload it, or give load_inplace")
    file = _file_of(server, body.lora_path)
    await asyncio.to_thread(server.engine.load_expert, body.lora_name, file)
    server.uploads.remove(body.lora_name)
    return _loaded(server, body.lora_name)


@admin_router.post("/v1/unload_lora_adapter")
async def unload_by_name(body: Annotated[UnloadBody, Body()], http: HttpRequest) -> dict[str, Any]:
    """Forgets an expert; vLLM's call for adapters."""
    server = served(http)
    return _unload(server, body.lora_name)


def _loaded(server: Served, name: str) -> dict[str, Any]:
    return {"name": name, "digest": server.engine.bank.registered(name).digest}


def _unload(server: Served, name: str) -> dict[str, Any]:
    if name not in server.engine.experts():
        raise ApiError(404, f"there is no expert {shortened(name)}: GET /v1/experts lists them")
    server.engine.unload_expert(name)
    server.uploads.remove(name)
    if server.directory is not None:
        server.directory.forget(name)
    return {"name": name, "deleted": True}


def _check_not_taken(server: Served, name: str) -> None:
    if name in (*server.base_names, *server.settings.aliases):
        raise ApiError(400, f"{name!r} names a model of this server: choose another name")


def _file_of(server: Served, path: str) -> Path:
    """An expert file of the directory, or in an adapter's folder there."""
    if server.directory is None:
        raise ApiError(403, "this server has no directory of experts: start it with --experts DIR")
    for candidate in (Path(path), Path(path) / "adapter_model.safetensors"):
        file = server.directory.inside(candidate)
        if file is not None:
            return file
    raise ApiError(404, "lora_path names no expert file in the server's directory of experts")
