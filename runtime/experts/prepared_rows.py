"""Rows that were worked out before, kept beside the bank, so that a slot can be written at once."""

from collections import OrderedDict

from .slot_rows import SlotRows


class PreparedRows:
    """Rows by the digest of their mixture, the least recently used of which go when they are too many.

    max_bytes: of all rows.
    max_count: of mixtures: what rows of few values cost beside their bytes is bounded, too.
    """

    def __init__(self, max_bytes: int, max_count: int) -> None:
        self._left = max_bytes
        self._max_count = max_count
        self._rows: OrderedDict[str, SlotRows] = OrderedDict()

    def get(self, digest: str) -> SlotRows | None:
        rows = self._rows.get(digest)
        if rows is not None:
            self._rows.move_to_end(digest)
        return rows

    def put(self, digest: str, rows: SlotRows) -> None:
        if digest in self._rows:
            return
        self._rows[digest] = rows
        self._left -= rows.nbytes
        while self._left < 0 or len(self._rows) > self._max_count:
            _, oldest = self._rows.popitem(last=False)
            self._left += oldest.nbytes
