"""Keys of the prefix cache: eight bytes a position, which say what its keys and values were computed from.

    key = namespace * 2**24 + token id

The namespace numbers a pair of salt and mixture digest: who may share the position, and what computed it. Keys and
values of a position follow from the keys of all positions up to it: where two sequences of keys begin alike, so do
their keys and values, bit for bit where results do not depend on the batch.
"""

from collections import OrderedDict
from collections.abc import Sequence as Seq

import numpy as np

from ..experts.mixture import BASE_DIGEST

KEY_BYTES = 8

_TOKEN_BITS = 24
# A namespace beyond these, the longest unused, is forgotten. It would get a new number: its blocks are not found again.
_MAX_NAMESPACES = 65536


class PrefixKeys:
    """Numbers the namespaces and writes the keys of tokens. A number is never given to another namespace."""

    def __init__(self) -> None:
        self._namespaces: OrderedDict[tuple[str | None, str], int] = OrderedDict()
        self._next = 1

    def extend(
        self, prefix_key: bytearray, token_ids: Seq[int], salt: str | None, digest: str, adapted_from: int = 0
    ) -> None:
        """Adds the keys of the tokens that came since `prefix_key` was last extended.

        prefix_key: keys of the first tokens.
        digest: of the mixture that computes the tokens from `adapted_from` on; the base model computes those before.
        """
        start = len(prefix_key) // KEY_BYTES
        new = np.array(token_ids[start:], dtype=np.int64)
        if not new.size:
            return
        num_base = max(0, adapted_from - start)
        if num_base:
            new[:num_base] += self._namespace(salt, BASE_DIGEST) << _TOKEN_BITS
        new[num_base:] += self._namespace(salt, digest) << _TOKEN_BITS
        prefix_key += new.tobytes()

    def of(self, token_ids: Seq[int], salt: str | None, digest: str) -> bytes:
        """The keys of tokens that are all computed by the mixture of this digest."""
        tokens = np.array(token_ids, dtype=np.int64)
        return (tokens + (self._namespace(salt, digest) << _TOKEN_BITS)).tobytes()

    def _namespace(self, salt: str | None, digest: str) -> int:
        number = self._namespaces.get((salt, digest))
        if number is None:
            number = self._namespaces[salt, digest] = self._next
            self._next += 1
            if len(self._namespaces) > _MAX_NAMESPACES:
                self._namespaces.popitem(last=False)
        self._namespaces.move_to_end((salt, digest))
        return number


def common_prefix_length(one: bytes | bytearray, other: bytes | bytearray) -> int:
    """Number of positions at the beginning in which two sequences of keys agree."""
    length = min(len(one), len(other)) // KEY_BYTES
    differs = np.frombuffer(one, np.int64, length) != np.frombuffer(other, np.int64, length)
    return int(differs.argmax()) if differs.any() else length
