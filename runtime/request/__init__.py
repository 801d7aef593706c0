"""Requests and results: what a caller writes and gets."""

from ..describe.description import Description
from ..names import KVReuse
from ..text.structured import ResponseFormat
from .request import MAX_LOGPROBS, MAX_SAMPLES, Message, Request
from .result import Delta, FinishReason, Result, Reuse, TokenLogprob
from .sampling import Sampling

__all__ = [
    "MAX_LOGPROBS",
    "MAX_SAMPLES",
    "Delta",
    "Description",
    "FinishReason",
    "KVReuse",
    "Message",
    "Request",
    "ResponseFormat",
    "Result",
    "Reuse",
    "Sampling",
    "TokenLogprob",
]
