"""The application: endpoints, errors, and the engine's thread."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from ..engine.async_engine import AsyncEngine
from ..engine.engine import Engine
from ..version import __version__
from . import errors
from .routes import chat, completions, expert_z, experts, health, models, playground, rescale, tokenize
from .served import Served
from .settings import ServerSettings


def create_app(engine: Engine, settings: ServerSettings) -> FastAPI:
    """An ASGI application that serves an engine, which is its alone while it runs."""
    served = Served(engine, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncEngine(engine) as served.serving:
            yield

    app = FastAPI(title="zweave", version=__version__, lifespan=lifespan)
    app.state.served = served
    errors.install(app, served.told)
    for part in (chat, completions, rescale, models, experts, expert_z, tokenize, health, playground):
        app.include_router(part.router)
    app.include_router(experts.admin_router)
    return app
