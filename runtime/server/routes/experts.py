"""/v1/experts, and vLLM's names for the same: experts that come and go while the server runs."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from ...adapters.peft_directory import WEIGHTS
from ...errors import ZweaveError, shortened
from ...experts.mixture import check_new_name
from ..errors import ApiError
from ..json_route import AdminRoute, JsonRoute
from ..limited_body import limited_body
from ..protocol.lora import LoadBody, UnloadBody
from ..served import Served, served

router = APIRouter(tags=["experts"], route_class=JsonRoute)
admin_router = APIRouter(tags=["experts"], route_class=AdminRoute)


@router.get("/v1/experts", response_model=None)
def experts(http: HttpRequest) -> JSONResponse:
    """The loaded experts."""
    server = served(http)
    return JSONResponse(
        {
            "experts": [
                {
                    "name": entry.name,
                    "kind": entry.kind,
                    "digest": entry.digest,
                    "scope": entry.scope,
                    "first_layer": entry.first_layer,
                    "description": entry.description,
                }
                for entry in server.entries()
            ]
        }
    )


@admin_router.post("/v1/experts", status_code=201)
async def load(
    http: HttpRequest,
    name: Annotated[str, Query(max_length=255)],
) -> dict[str, Any]:
    """Loads the safetensors file in the body under a name; a known name is replaced for new requests."""
    server = served(http)
    check_new_name(name)
    _check_not_taken(server, name)
    body = await limited_body(
        http, server.uploads.largest, "an expert for this model can be", server.settings.request_timeout
    )
    expert = await asyncio.to_thread(server.uploads.add, name, body)
    return {"name": name, "digest": expert.digest}


@admin_router.delete("/v1/experts/{name:path}")
async def unload(name: str, http: HttpRequest) -> dict[str, Any]:
    """Forgets an expert; requests that run under it go on."""
    server = served(http)
    return await asyncio.to_thread(_unload, server, name)


@admin_router.post("/v1/load_lora_adapter")
async def load_from_directory(body: Annotated[LoadBody, Body()], http: HttpRequest) -> dict[str, Any]:
    """Loads an expert file or a LoRA of the server's directory of experts; vLLM's call for adapters."""
    server = served(http)
    check_new_name(body.lora_name)
    _check_not_taken(server, body.lora_name)
    if body.lora_name in server.engine.bank and not body.load_inplace:
        raise ApiError(400, f"{body.lora_name!r} is loaded already: unload it, or give load_inplace")
    source = _source_of(server, body.lora_path)
    entry = await asyncio.to_thread(server.engine.bank.load, body.lora_name, source)
    await asyncio.to_thread(server.uploads.note_replaced, body.lora_name)
    return {"name": entry.name, "digest": entry.digest}


@admin_router.post("/v1/unload_lora_adapter")
async def unload_by_name(body: Annotated[UnloadBody, Body()], http: HttpRequest) -> dict[str, Any]:
    """Forgets an expert; vLLM's call for adapters."""
    server = served(http)
    return await asyncio.to_thread(_unload, server, body.lora_name)


def _unload(server: Served, name: str) -> dict[str, Any]:
    try:
        server.uploads.unload(name)
    except ZweaveError:
        raise ApiError(404, f"there is no expert {shortened(name)}: GET /v1/experts lists them") from None
    if server.directory is not None:
        server.directory.forget(name)
    return {"name": name, "deleted": True}


def _check_not_taken(server: Served, name: str) -> None:
    if name in (*server.base_names, *server.settings.aliases):
        raise ApiError(400, f"{name!r} names a model of this server: choose another name")


def _source_of(server: Served, path: str) -> Path:
    """A LoRA or an expert file of the directory, or the expert file in an adapter's folder there."""
    if server.directory is None:
        raise ApiError(403, "this server has no directory of experts: start it with --experts DIR")
    lora = server.directory.lora(Path(path))
    if lora is not None:
        return lora
    for candidate in (Path(path), Path(path) / WEIGHTS):
        file = server.directory.inside(candidate)
        if file is not None:
            return file
    raise ApiError(404, "lora_path names no expert file and no LoRA in the server's directory of experts")
