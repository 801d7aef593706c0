"""zweave: one resident language model, many adapted prompts in one batch."""

from zweave.async_engine import AsyncEngine
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.expert import Expert
from zweave.request import Delta, Request, Result, Sampling, TokenLogprob

__all__ = [
    "AsyncEngine",
    "Delta",
    "Engine",
    "Expert",
    "Request",
    "Result",
    "Sampling",
    "TokenLogprob",
    "ZweaveError",
]
