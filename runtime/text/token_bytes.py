"""The bytes that each token stands for."""

import json
import re
from functools import cache
from typing import Any

import tokenizers

from ..errors import ZweaveError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Token ids to bytes, for byte-level BPE and for SentencePiece tokenizers.

    strips_first_space: whether the space that begins a text was put there by the tokenizer.
    Raises ZweaveError for another kind of decoder.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._special = frozenset(token for token, kind in added.items() if kind.special)
        steps = _decoder_steps(tokenizer)
        kinds = [step["type"] for step in steps]
        self._byte_level = "ByteLevel" in kinds
        if not self._byte_level and not {"Metaspace", "ByteFallback", "Replace"}.intersection(kinds):
            raise ZweaveError(
                f"the tokenizer's decoder {kinds} is neither byte-level BPE nor SentencePiece: not supported"
            )
        self.strips_first_space = any(map(_strips_first_space, steps))
        # Added tokens are written as they are, not in GPT-2's stand-ins for bytes.
        self._known = {token: kind.content.encode() for token, kind in added.items() if self._byte_level}

    def is_added(self, token: int) -> bool:
        """Whether a token is never made of text pieces: it is special, or was added to the vocabulary."""
        return token in self._added

    def is_special(self, token: int) -> bool:
        return token in self._special

    def of(self, token: int, skip_special: bool) -> bytes:
        """Bytes of a token; none for special tokens that are skipped and for ids outside the vocabulary."""
        if skip_special and token in self._special:
            return b""
        known = self._known.get(token)
        if known is None:
            text = self._tokenizer.id_to_token(token) if 0 <= token < 1 << 32 else None
            known = self._known[token] = b"" if text is None else self._convert(text)
        return known

    def _convert(self, text: str) -> bytes:
        if self._byte_level:
            table = _byte_of_character()
            try:
                return bytes([table[character] for character in text])
            except KeyError:
                return text.encode()
        match = _BYTE_TOKEN.fullmatch(text)
        return bytes([int(match[1], 16)]) if match else text.replace("▁", " ").encode()


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's stand-ins: printable Latin-1 bytes are themselves, the others follow from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _decoder_steps(tokenizer: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    decoder = tokenizer.decoder
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return state["decoders"] if state["type"] == "Sequence" else [state]


def _strips_first_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always") != "never"
    return step["type"] == "Strip" and step.get("content") == " " and step.get("start", 0) > 0
