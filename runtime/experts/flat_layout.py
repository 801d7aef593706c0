"""Where the matrices lie in a row of all singular values."""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class ColumnOrder:
    """Matrices in the order in which something else has them.

    modules: the matrices.
    columns: of each.
    """

    modules: tuple[str, ...]
    columns: tuple[slice, ...]


@dataclass(frozen=True, slots=True, eq=False)
class FlatLayout:
    """Matrices side by side in a row [sum of R], one after the other.

    columns: of each matrix, in order.
    shapes: (R,) of each.
    """

    columns: Mapping[str, slice]
    shapes: Mapping[str, tuple[int]]
    _orders: dict[tuple[str, ...], ColumnOrder] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, ranks: Mapping[str, int]) -> "FlatLayout":
        ends = list(accumulate(ranks.values()))
        starts = [0, *ends[:-1]] if ends else []
        columns = dict(zip(ranks, map(slice, starts, ends), strict=True))
        return cls(columns, {module: (rank,) for module, rank in ranks.items()})

    @property
    def width(self) -> int:
        return max((part.stop for part in self.columns.values()), default=0)

    def order_of(self, modules: tuple[str, ...]) -> ColumnOrder:
        """The same one for equal tuples: experts are many, and their orders few."""
        if modules not in self._orders:
            columns = tuple(self.columns[module] for module in modules)
            self._orders[modules] = ColumnOrder(modules, columns)
        return self._orders[modules]

    def joined(self, modules: Seq[str]) -> slice:
        """The columns of matrices that follow each other; ValueError if they do not."""
        parts = [self.columns[module] for module in modules]
        if any(one.stop != other.start for one, other in pairwise(parts)):
            raise ValueError("the matrices do not follow each other in the tables")
        return slice(parts[0].start, parts[-1].stop)

    def leading(self, counts: Mapping[str, int]) -> npt.NDArray[np.int64]:
        """The columns of the first components of each matrix, side by side."""
        kept = [np.arange(part.start, part.start + counts[module]) for module, part in self.columns.items()]
        return np.concatenate([np.zeros(0, dtype=np.int64), *kept])

    def supports(self, differs: npt.NDArray[np.bool_]) -> list[int]:
        """How many leading components of each matrix hold all that differ [sum of R]."""
        # Looking from behind at bytes is the fastest search that Python and NumPy have.
        found = differs.tobytes()
        return [
            max(found.rfind(1, part.start, part.stop) + 1 - part.start, 0) for part in self.columns.values()
        ]
