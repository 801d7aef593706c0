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

    The pieces of `add` and `finish`, joined, are the text of all tokens.

    context: the token ids before the answer. A SentencePiece tokenizer drops the space that begins a text, so it
        drops the answer's first space only if there are none.
    skip_special: whether special tokens give no text.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), skip_special: bool = True) -> None:
        self._bytes = tokenizer.token_bytes
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = self._bytes.strips_first_space and len(context) == 0

    def add(self, token_id: int) -> str:
        """The text that this token completes; bytes of an unfinished character are held back."""
        text = self._utf8.decode(self._bytes.of(token_id, self._skip_special))
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def special_text(self, token_id: int) -> str:
        """How a special token is written, which `add` gives no text for; empty for other tokens."""
        if not self._skip_special or not self._bytes.is_special(token_id):
            return ""
        return self._bytes.of(token_id, skip_special=False).decode("utf-8", "replace")

    def finish(self) -> str:
        """What was held back: U+FFFD for an unfinished character."""
        return self._utf8.decode(b"", final=True)


class StopChecker:
    """Text of a growing answer before its first stop string; holds back what may yet become one.

    Stop strings are looked for in the text with its special tokens written out, which are not shown.

    min_tokens: a stop string that ends in so many first tokens does not count.
    shows_stop: whether the text ends with the stop string, not before it.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: Sequence[str],
        min_tokens: int = 0,
        shows_stop: bool = False,
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._num_exempt_tokens = min_tokens
        self._shows_stop = shows_stop
        self._held = ""
        self._num_exempt = 0  # characters of `_held` in which no stop string may end
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
        if self._num_exempt_tokens:
            self._num_exempt_tokens -= 1
            self._num_exempt = len(self._held)
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
        found = _first_stop(self._held, self._stops, self._num_exempt)
        if found is None:
            keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
            return self._show(len(self._held) - keep), False
        at, stop = found
        text = self._show(at + len(stop) if self._shows_stop else at)
        self._held, self._is_shown = "", b""
        return text, True

    def _show(self, end: int) -> str:
        """Gives out what is held up to an index."""
        text = "".join(compress(self._held[:end], self._is_shown))
        self._held, self._is_shown = self._held[end:], self._is_shown[end:]
        self._num_exempt = max(0, self._num_exempt - end)
        self._shown.append(text)
        return text


def _first_stop(text: str, stops: Sequence[str], num_exempt: int) -> tuple[int, str] | None:
    """The first of the stop strings in a text and where it begins, if one ends behind its first characters."""
    found = [(at, stop) for stop in stops if (at := text.find(stop, max(0, num_exempt - len(stop) + 1))) >= 0]
    return min(found, key=lambda place: place[0], default=None)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
