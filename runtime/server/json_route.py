"""Routes for those who have the key, which is looked at before a body is read, and whose JSON is read by our rules."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from ..errors import one_line
from ..io.json_text import parse_json
from .errors import ApiError
from .limited_body import limited_body
from .served import served


class _JsonRequest(Request):
    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            settings = served(self).settings
            self._body = await limited_body(
                self, settings.max_body, "this server takes", settings.request_timeout
            )
        return self._body

    async def json(self) -> Any:
        try:
            return parse_json((await self.body()).decode("utf-8"))
        except json.JSONDecodeError as error:
            raise ApiError(400, f"the body is not JSON: {one_line(error)}") from None
        except UnicodeDecodeError:
            raise ApiError(400, "the body is not UTF-8 text") from None
        except ValueError as error:
            raise ApiError(400, f"the body cannot be read: {one_line(error)}") from None


class JsonRoute(APIRoute):
    """A route for clients, whose JSON is read so."""

    def check(self, request: Request) -> None:
        """Raises ApiError for a stranger; notes whose the request is."""
        request.state.tenant = served(request).keys.tenant(request.headers)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            self.check(request)
            with served(request).bodies.hold() as request.state.held_body:
                return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class AdminRoute(JsonRoute):
    """A route for whoever has the admin key."""

    def check(self, request: Request) -> None:
        """Raises ApiError for everybody else."""
        served(request).keys.check_admin(request.headers)


def tenant(request: Request) -> str | None:
    """The salt of the cache of the client that a JsonRoute let in."""
    found: str | None = request.state.tenant
    return found
