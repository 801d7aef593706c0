"""zweave: one resident language model, many adapted prompts in one batch."""

import sys
from importlib import import_module

from ._moved import MovedModules

# Type checkers know the name; to import it from typing would take longer than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .dispatcher import Dispatch
    from .engine.async_engine import AsyncEngine
    from .engine.engine import Engine
    from .errors import ZweaveError
    from .experts.expert import Expert
    from .request import Delta, Description, Request, ResponseFormat, Result, Sampling, TokenLogprob
    from .version import __version__

__all__ = [
    "AsyncEngine",
    "Delta",
    "Description",
    "Dispatch",
    "Engine",
    "Expert",
    "Request",
    "ResponseFormat",
    "Result",
    "Sampling",
    "TokenLogprob",
    "ZweaveError",
    "__version__",
]

_MODULES = {
    "AsyncEngine": "engine.async_engine",
    "Dispatch": "dispatcher",
    "Engine": "engine.engine",
    "Expert": "experts.expert",
    "ZweaveError": "errors",
    "__version__": "version",
}


def __getattr__(name: str) -> object:
    """Imports a public name at its first use: the command line can then be interrupted while torch loads."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"zweave.{_MODULES.get(name, 'request')}"), name)


if MovedModules not in sys.meta_path:
    sys.meta_path.append(MovedModules)
