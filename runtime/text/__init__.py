"""Text to tokens and back."""

from .prompt_template import PromptTemplate
from .tokenizer import Tokenizer
from .tool_calls import ToolCall, parse_tool_calls

__all__ = [
    "PromptTemplate",
    "Tokenizer",
    "ToolCall",
    "parse_tool_calls",
]
