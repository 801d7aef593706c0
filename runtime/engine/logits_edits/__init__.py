"""Edits of logits before a token is sampled, one a file."""

from ...scheduler.logits_edit import LogitsEdit
from .beside import beside
from .of_request import edits_of

__all__ = [
    "LogitsEdit",
    "beside",
    "edits_of",
]
