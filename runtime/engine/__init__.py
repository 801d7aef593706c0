"""One step after the other: requests in, tokens out."""

from .async_engine import AsyncEngine
from .config import EngineConfig
from .engine import Engine

__all__ = [
    "AsyncEngine",
    "Engine",
    "EngineConfig",
]
