"""The experts and LoRAs that an engine knows by name."""

from collections import Counter
from difflib import get_close_matches
from heapq import nsmallest

from ..errors import ZweaveError
from .mixture import DESCRIBED
from .resolved_mixture import Entry

# Names that an unknown one is compared with: more would hold up who asks.
_MAX_COMPARED = 1000


class Registry:
    """Entries by name, in the order of their first loading. Not thread-safe: the bank's lock covers it.

    num_layers: of the model.

    entries: the entries.
    first_layers: the first layers above 0 of the entries, ascending.
    """

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self.entries: dict[str, Entry] = {}
        self.first_layers: tuple[int, ...] = ()
        self._first_layer_counts: Counter[int] = Counter()

    def add(self, entry: Entry) -> None:
        """Makes an entry known, in the place of another of its name."""
        self._note_first_layers(self.entries.get(entry.name), entry)
        self.entries[entry.name] = entry

    def remove(self, name: str) -> None:
        """Forgets a name; ZweaveError if it is not known."""
        self._note_first_layers(self.find(name), None)
        del self.entries[name]

    def find(self, name: str) -> Entry:
        """The entry of a name; ZweaveError with names like it, none of a described expert's, if there is none."""
        if name in self.entries:
            return self.entries[name]
        told = [known for known in self.entries if not known.startswith(DESCRIBED)]
        close = get_close_matches(name, told, n=3) if len(told) <= _MAX_COMPARED else []
        if close:
            hint = f"did you mean {' or '.join(map(repr, close))}?"
        elif told:
            rest = f" and {len(told) - 8} more" if len(told) > 8 else ""
            hint = f"loaded: {', '.join(nsmallest(8, told))}{rest}"
        else:
            hint = "none is loaded"
        raise ZweaveError(f"there is no expert {name!r}: {hint}")

    def _note_first_layers(self, gone: Entry | None, new: Entry | None) -> None:
        """Keeps `first_layers` true when an entry goes and another comes, however many there are."""
        counts = self._first_layer_counts
        for entry, by in ((gone, -1), (new, 1)):
            if entry is not None:
                counts[entry.first_layer] += by
        self.first_layers = tuple(
            sorted(layer for layer, count in counts.items() if count and 0 < layer < self._num_layers)
        )
