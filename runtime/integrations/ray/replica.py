"""One of the servers behind Ray Serve's address."""

from fastapi import FastAPI
from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...engine.gc_heap import freeze_heap
from ...errors import ZweaveError
from ...options.server_options import open_serving_engine, server_settings
from ...server.app import create_app
from ...server.served import Served
from .arguments import Arguments
from .ray_metrics import RayMetrics


class Replica:
    """An engine of its own with every expert, under the application of `zweave serve`.

    Ray calls the methods; it starts the application's lifespan with the replica, and ends it when its requests have.
    """

    def __init__(self, arguments: Arguments) -> None:
        options = arguments.options()
        settings = server_settings(options, replicated=True)
        self._application = create_app(open_serving_engine(options), settings)
        self._served: Served = self._application.state.served
        freeze_heap()
        self._metrics = RayMetrics(self._served.metrics.registry)
        self._application.add_middleware(_Named, name=serve.get_replica_context().replica_id.unique_id)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._application

    def check_health(self) -> None:
        """Raises ZweaveError if the engine has failed; Ray starts another replica then.

        Ray asks every ten seconds, as often as it collects metrics.
        """
        if self._served.serving.closed:
            raise ZweaveError("the engine has stopped")
        self._metrics.update()


class _Named:
    """Answers with the header X-Replica, so that a client sees which replica has its cache."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app = app
        self._header = (b"x-replica", name.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], self._header]
            await send(message)

        await self._app(scope, receive, send_named)
