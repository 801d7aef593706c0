"""/v1/chat/completions."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from ..answers.answering import Answering, answered
from ..answers.event_stream import event_stream
from ..json_route import JsonRoute, tenant
from ..protocol.chat import ChatBody
from ..responses.chat import ChatResponse
from ..served import served
from ..to_requests import chat_request

router = APIRouter(tags=["completions"], route_class=JsonRoute)


@router.post("/v1/chat/completions", response_model=None)
async def chat(body: ChatBody, http: HttpRequest) -> Any:
    """Answers a conversation."""
    server = served(http)
    salt = tenant(http)
    choices = await server.choices(body)
    request = chat_request(body, choices, salt, server.engine)
    response = ChatResponse(
        body.model, server.engine.tokenizer, body.includes_usage, body.offered_tools is not None
    )
    answering = Answering(server, [request], response.id)
    if body.stream:
        return await event_stream(answering, response)
    return response.whole(await answered(answering, http))
