"""/v1/requests/ID/rescale: another mixture for an answer that is on its way."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from ...describe.description import Description
from ..json_route import JsonRoute, tenant
from ..protocol.rescale import RescaleBody
from ..served import served

router = APIRouter(tags=["completions"], route_class=JsonRoute)


@router.post("/v1/requests/{response_id}/rescale")
async def rescale(response_id: str, body: RescaleBody, http: HttpRequest) -> dict[str, Any]:
    """Changes who computes the next tokens of all answers of a response."""
    server = served(http)
    salt = tenant(http)
    choice = await server.choose(body.model or "base", body.expert)
    if isinstance(choice, Description):
        # Nothing is made for an answer that is not on its way.
        server.running.request_ids(response_id, salt)
        with server.admission.admit(1):
            choice = await server.serving.name_of(choice)
    for request_id in server.running.request_ids(response_id, salt):
        server.engine.rescale(request_id, choice)
    return {"id": response_id, "expert": choice}
