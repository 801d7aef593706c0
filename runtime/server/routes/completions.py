"""/v1/completions."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from ..answers.answering import Answering, answered
from ..answers.event_stream import event_stream
from ..json_route import JsonRoute, tenant
from ..protocol.completion import CompletionBody
from ..responses.completion import CompletionResponse
from ..served import served
from ..to_requests import completion_requests

router = APIRouter(tags=["completions"], route_class=JsonRoute)


@router.post("/v1/completions", response_model=None)
async def completions(body: CompletionBody, http: HttpRequest) -> Any:
    """Continues prompts."""
    server = served(http)
    salt = tenant(http)
    choices = await server.choices(body)
    requests = completion_requests(body, choices, salt, server.settings.max_prompts)
    response = CompletionResponse(body, server.engine.tokenizer)
    answering = Answering(server, requests, response.id)
    if body.stream:
        return await event_stream(answering, response)
    return response.whole(await answered(answering, http))
