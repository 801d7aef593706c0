"""Text of an answer that grows token by token, up to its first stop string."""

import codecs
from collections.abc import Sequence
from itertools import compress
from typing import Protocol

from .tokenizer import Tokenizer


class Detokenizer(Protocol):
    """Turns tokens into text as they come (`IncrementalDetokenizer`)."""

    def add(self, token_id: int) -> str: ...

    def special_text(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class IncrementalDetokenizer:
    """Text of a growing answer, in constant time a token.

    The pieces of `add` and `finish`, joined, are the text of all tokens; special tokens give none.

    context: the token ids before the answer. A SentencePiece tokenizer drops the space that begins a text, so it
        drops the answer's first space only if there are none.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = self._bytes.strips_first_space and len(context) == 0

    def add(self, token_id: int) -> str:
        """The text that this token completes; bytes of an unfinished character are held back."""
        text = self._utf8.decode(self._bytes.of(token_id, skip_special=True))
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def special_text(self, token_id: int) -> str:
        """How a special token is written, which `add` gives no text for; empty for other tokens."""
        if not self._bytes.is_special(token_id):
            return ""
        return self._bytes.of(token_id, skip_special=False).decode("utf-8", "replace")

    def finish(self) -> str:
        """What was held back: U+FFFD for an unfinished character."""
        return self._utf8.decode(b"", final=True)


class StopChecker:
    """Text of a growing answer before its first stop string; holds back what may yet become one.

    Stop strings are looked for in the text with its special tokens written out, which are not shown.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._held = ""
        self._is_shown = b""  # a byte a character of `_held`, 0 in special tokens
        self._shown: list[str] = []

    @property
    def shown(self) -> str:
        """All text given out so far."""
        return "".join(self._shown)

    def add(self, token_id: int) -> tuple[str, bool]:
        """Takes the next token; returns the text to show and whether a stop string was met."""
        self._hold(self._detokenizer.add(token_id), is_shown=True)
        if self._stops:
            self._hold(self._detokenizer.special_text(token_id), is_shown=False)
        return self._release()

    def finish(self) -> str:
        """Ends the answer; returns what was still held back, up to a stop string."""
        self._hold(self._detokenizer.finish(), is_shown=True)
        text, stopped = self._release()
        return text if stopped else text + self._show(len(self._held))

    def _hold(self, text: str, is_shown: bool) -> None:
        self._held += text
        self._is_shown += bytes([is_shown]) * len(text)

    def _release(self) -> tuple[str, bool]:
        before, stopped = _before_stop(self._held, self._stops)
        keep = 0 if stopped else max((_overlap(before, stop) for stop in self._stops), default=0)
        text = self._show(len(before) - keep)
        if stopped:
            self._held, self._is_shown = "", b""
        return text, stopped

    def _show(self, end: int) -> str:
        """Gives out what is held up to an index."""
        text = "".join(compress(self._held[:end], self._is_shown))
        self._held, self._is_shown = self._held[end:], self._is_shown[end:]
        self._shown.append(text)
        return text


def _before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop strings, and whether there was one."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
