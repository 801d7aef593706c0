"""Runs the application under uvicorn until it is told to stop."""

import uvicorn

from ..engine.engine import Engine
from ..engine.gc_heap import freeze_heap
from .app import create_app
from .settings import ServerSettings


def run_server(engine: Engine, settings: ServerSettings, host: str, port: int) -> None:
    """Serves until SIGTERM or Ctrl-C; requests that run then may end, within `drain_timeout`."""
    app = create_app(engine, settings)
    freeze_heap()
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(settings.drain_timeout),
    )
