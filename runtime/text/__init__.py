"""Text to tokens and back."""

from .prompt_template import PromptTemplate
from .tokenizer import Tokenizer

__all__ = [
    "PromptTemplate",
    "Tokenizer",
]
