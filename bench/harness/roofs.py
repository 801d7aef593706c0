"""The machine's limits, timed in the same rounds as the providers: a neighbour that slows one slows both.

Reads stream a buffer far larger than the caches; nothing is written, for writes would cost bandwidth that a
product of few tokens does not spend. Several kinds of reads are tried and the fastest is the roof, as it is for the
arithmetic, whose candidates are products that keep every core busy. The candidates: cpu_roofs.py, cuda_roofs.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .harness import Outcome, Provider, Run

Binding: TypeAlias = Literal["read", "arithmetic"]

READ = "roof read"
ARITHMETIC = "roof arithmetic"
CALL = "call"


@dataclass(frozen=True, slots=True)
class Roofs:
    """The machine's limits.

    read: bytes a second.
    arithmetic: multiplications and additions a second.
    call: seconds of an empty call.
    """

    read: float
    arithmetic: float
    call: float = 0.0

    def seconds(self, moved: float, flops: float) -> float:
        """The least time that the work can take."""
        return max(moved / self.read, flops / self.arithmetic)

    def binding(self, moved: float, flops: float) -> Binding:
        """Which roof that time comes from."""
        return "read" if moved / self.read >= flops / self.arithmetic else "arithmetic"

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> "Roofs":
        """The fastest candidates among what was measured."""
        listed = [outcome for outcome in outcomes if outcome.seconds]

        def best(name: str, work: Callable[[Provider], float]) -> float:
            return max(work(o.provider) / o.seconds for o in listed if o.seconds and o.provider.name == name)

        calls = [o.seconds for o in listed if o.seconds and o.provider.name == CALL]
        return cls(
            best(READ, lambda p: p.moved), best(ARITHMETIC, lambda p: p.flops), min(calls, default=0.0)
        )


def is_roof(outcome: Outcome) -> bool:
    return outcome.provider.name in (READ, ARITHMETIC, CALL)


def roof(name: str, candidate: str, calls: Sequence[Run], moved: float = 0.0, flops: float = 0.0) -> Provider:
    """A candidate for a roof."""
    return Provider(name, calls, lambda: 0.0, 0.0, labels={"candidate": candidate}, moved=moved, flops=flops)


def roofline_keys(outcome: Outcome, roofs: Roofs) -> dict[str, object]:
    """gb_s, gflop_s, roof, roof_pct and net_pct of a JSON row; all but the roof's name None without a time."""
    moved, flops = outcome.provider.moved, outcome.provider.flops
    seconds = outcome.seconds
    return {
        "gb_s": None if seconds is None else moved / seconds / 1e9,
        "gflop_s": None if seconds is None else flops / seconds / 1e9,
        "roof": roofs.binding(moved, flops),
        "roof_pct": None if seconds is None else 100 * roofs.seconds(moved, flops) / seconds,
        "net_pct": None if seconds is None else 100 * roofs.seconds(moved, flops) / (seconds - roofs.call),
    }
