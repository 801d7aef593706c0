"""Symbols: what the keys and values of a position were computed from, in eight bytes a position.

    symbol = owner * 2**24 + token

The owner stands for a request's salt and the digest of the mixture that computed the position. Keys and values
of a position follow from the symbols of all positions up to it: where two sequences of symbols begin alike, so
do their keys and values, bit for bit where results do not depend on the batch.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from ..experts.bank import BASE_DIGEST
from .prefix_tree import SYMBOL

if TYPE_CHECKING:
    from ..scheduler.sequence import Sequence

_TOKEN_BITS = 24
# Owners that are remembered. A forgotten one gets a new number: its blocks are not found any more.
_OWNERS = 65536


class Symbols:
    """Numbers owners and writes the symbols of sequences. Numbers are never used again for others."""

    def __init__(self) -> None:
        self._owners: OrderedDict[tuple[str | None, str], int] = OrderedDict()
        self._next = 1

    def between(self, sequence: "Sequence", start: int, stop: int) -> bytes:
        """Symbols of the tokens from `start` to before `stop`."""
        self.extend(sequence)
        return bytes(sequence.symbols[start * SYMBOL : stop * SYMBOL])

    def extend(self, sequence: "Sequence") -> None:
        """Writes the symbols of tokens that came since the last call."""
        start = len(sequence.symbols) // SYMBOL
        new = np.array(sequence.token_ids[start:], dtype=np.int64)
        if not new.size:
            return
        salt, base = sequence.request.salt, max(0, sequence.adapted_from - start)
        if base:
            new[:base] += self._owner(salt, BASE_DIGEST) << _TOKEN_BITS
        new[base:] += self._owner(salt, sequence.mixture.digest) << _TOKEN_BITS
        sequence.symbols += new.tobytes()

    def under(self, sequence: "Sequence", digest: str) -> bytes:
        """Symbols of all tokens as a mixture of this digest would compute them from the first on."""
        tokens = np.array(sequence.token_ids, dtype=np.int64)
        return (tokens + (self._owner(sequence.request.salt, digest) << _TOKEN_BITS)).tobytes()

    def _owner(self, salt: str | None, digest: str) -> int:
        owner = self._owners.get((salt, digest))
        if owner is None:
            owner = self._owners[salt, digest] = self._next
            self._next += 1
            if len(self._owners) > _OWNERS:
                self._owners.popitem(last=False)
        self._owners.move_to_end((salt, digest))
        return owner


def common_positions(one: bytes | bytearray, other: bytes | bytearray) -> int:
    """How many positions two sequences of symbols have in common at their beginning."""
    length = min(len(one), len(other)) // SYMBOL
    differs = np.frombuffer(one, np.int64, length) != np.frombuffer(other, np.int64, length)
    return int(differs.argmax()) if differs.any() else length
