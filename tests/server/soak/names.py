"""What each name may answer at a time: experts come, change and go while requests are on their way."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# A version of a name under which there is no expert.
ABSENT = -1


@dataclass(slots=True)
class Name:
    """A name of an expert.

    kind: "upload", "file" (in the server's directory), or "adapter" (there too, loaded by vLLM's calls).
    possible: versions that a request which comes now may meet.
    """

    text: str
    kind: str
    possible: set[int]
    is_changing: bool = False
    _watchers: list[set[int]] = field(default_factory=list)

    @contextmanager
    def watched(self) -> Iterator[set[int]]:
        """The versions that a request within may meet; it grows as the name changes."""
        met = set(self.possible)
        self._watchers.append(met)
        try:
            yield met
        finally:
            # By identity: equal sets are other requests'.
            self._watchers = [watcher for watcher in self._watchers if watcher is not met]

    @contextmanager
    def changes(self, version: int) -> Iterator[None]:
        """Within it the name changes to a version, which holds afterwards."""
        self.is_changing = True
        self.possible.add(version)
        for watcher in self._watchers:
            watcher.add(version)
        try:
            yield
        finally:
            self.possible = {version}
            self.is_changing = False

    def next_version(self, chance: random.Random) -> int:
        """Another than the one that holds now."""
        (version,) = self.possible
        return version ^ 1 if version != ABSENT else chance.randrange(2)
