"""What the responses of both kinds of completions have in common."""

from collections.abc import Sequence
from typing import Any

from ...request import Result
from ...text.tokenizer import Tokenizer
from .facts import usage


class Response:
    """The response to one body, whole or in chunks.

    head: the fields that it begins with.
    prompts: how many the body has.
    includes_usage: whether a stream ends with the usage.
    """

    def __init__(
        self, head: dict[str, Any], tokenizer: Tokenizer, prompts: int, includes_usage: bool
    ) -> None:
        self._head, self._tokenizer, self._prompts = head, tokenizer, prompts
        self.includes_usage = includes_usage

    @property
    def id(self) -> str:
        """By which clients name the response."""
        return str(self._head["id"])

    def usage(self, results: Sequence[Result]) -> dict[str, Any]:
        """The chunk that tells the tokens used."""
        return {**self._head, "choices": [], "usage": usage(results, self._prompts)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        nothing = {"usage": None} if self.includes_usage else {}
        return {**self._head, "choices": [choice], **nothing}
