"""Answers of a given form."""

from .compiler import FormatCompiler
from .response_format import ResponseFormat

__all__ = [
    "FormatCompiler",
    "ResponseFormat",
]
