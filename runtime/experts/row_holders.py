"""Who may still need the rows of a slot when others get it."""

from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet

from .slot_rows import SlotRows


class Holder(Protocol):
    """What acquires a slot. held: its rows, once they are known to be kept."""

    @property
    def held(self) -> list[SlotRows]: ...


class RowHolders:
    """All that has acquired a slot, as long as somebody refers to it.

    A slot's rows are copied only when it is evicted while one of these lives, as after a preemption.
    """

    def __init__(self) -> None:
        self._of_slot: dict[int, WeakSet[Holder]] = {}

    def add(self, slot: int, holder: Holder) -> None:
        """Notes who acquires a slot; what others there hold is its own, too."""
        others = self._of_slot.setdefault(slot, WeakSet())
        if not holder.held:
            holder.held.extend(next((other.held for other in others), []))
        others.add(holder)

    def evict(self, slot: int, rows: Callable[[], SlotRows]) -> None:
        """Gives those of a slot that live, and hold nothing, its rows."""
        waiting = [holder for holder in self._of_slot.pop(slot, ()) if not holder.held]
        if waiting:
            kept = rows()
            for holder in waiting:
                holder.held.append(kept)
