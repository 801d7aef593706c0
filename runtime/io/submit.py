"""Work on a device that must keep its place among what was launched before."""

from collections.abc import Callable
from typing import TypeAlias

Work: TypeAlias = Callable[[], None]
Submit: TypeAlias = Callable[[Work], None]


def at_once(work: Work) -> None:
    """Does the work now: for a CPU, where nothing is in flight."""
    work()
