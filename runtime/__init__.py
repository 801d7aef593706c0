"""zweave: one resident language model, many adapted prompts in one batch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zweave.async_engine import AsyncEngine
    from zweave.engine import Engine
    from zweave.errors import ZweaveError
    from zweave.expert import Expert
    from zweave.request import Delta, Dispatch, Request, Result, Sampling, TokenLogprob

__all__ = [
    "AsyncEngine",
    "Delta",
    "Dispatch",
    "Engine",
    "Expert",
    "Request",
    "Result",
    "Sampling",
    "TokenLogprob",
    "ZweaveError",
]

_MODULES = {
    "AsyncEngine": "async_engine",
    "Engine": "engine",
    "Expert": "expert",
    "ZweaveError": "errors",
}


def __getattr__(name: str) -> object:
    """Imports a public name at its first use: the command line can then be interrupted while torch loads."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"zweave.{_MODULES.get(name, 'request')}"), name)
