"""Text of a growing answer that ends before its first stop string."""

from collections.abc import Sequence
from typing import Protocol


class Text(Protocol):
    """What turns tokens into text as they come (`TextStream`)."""

    def add(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class StopText:
    """Turns generated tokens into text and holds back what may yet become a stop string."""

    def __init__(self, stream: Text, stops: Sequence[str]) -> None:
        self._stream = stream
        self._stops = stops
        self._held = ""
        self._shown: list[str] = []

    @property
    def shown(self) -> str:
        """All text given out so far."""
        return "".join(self._shown)

    def add(self, token_id: int) -> tuple[str, bool]:
        """Takes the next token; returns the text to show and whether a stop string was met."""
        self._held += self._stream.add(token_id)
        return self._release()

    def finish(self) -> str:
        """The answer is over: returns what was still held back, up to a stop string."""
        self._held += self._stream.finish()
        text, stopped = self._release()
        if stopped:
            return text
        rest, self._held = self._held, ""
        self._shown.append(rest)
        return text + rest

    def _release(self) -> tuple[str, bool]:
        found = [index for index in (self._held.find(stop) for stop in self._stops) if index >= 0]
        if found:
            text, self._held = self._held[: min(found)], ""
        else:
            keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
            cut = len(self._held) - keep
            text, self._held = self._held[:cut], self._held[cut:]
        self._shown.append(text)
        return text, bool(found)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
