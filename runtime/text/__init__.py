"""Text to tokens and back."""

from .tokenizer import Tokenizer

__all__ = [
    "Tokenizer",
]
