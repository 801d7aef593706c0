"""/health and /metrics."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from ..errors import ApiError
from ..served import served

router = APIRouter(tags=["operation"])


@router.get("/health")
async def health(http: HttpRequest) -> dict[str, Any]:
    """200 while requests are taken up."""
    if served(http).serving.closed:
        raise ApiError(503, "the engine has stopped: the server has to be started again")
    return {"status": "ok"}


@router.get("/metrics")
async def metrics(http: HttpRequest) -> Response:
    """In Prometheus' text format."""
    return Response(served(http).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
