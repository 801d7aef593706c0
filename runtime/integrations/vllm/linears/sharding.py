"""The part of the factors that a worker of a tensor-parallel group holds.

    W = U diag(scale) Vt,   column-parallel: W's rows are split,   row-parallel: W's columns are

A column-parallel worker has its rows of U and all of Vt; its output is its part of y. A row-parallel one has all of U
and its columns of Vt; it reads its part of x, and the sum over the workers is y, for the scale lies between two linear
maps. Either way each needs the whole scale: z and sigma are replicated, and nothing is sent that the dense layer would
not send.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shard:
    """One of equal parts of a matrix's outputs or inputs.

    index: which part.
    size: outputs or inputs in a part.
    """

    index: int
    size: int

    @property
    def span(self) -> slice:
        return slice(self.index * self.size, (self.index + 1) * self.size)


def shard_factors(
    u: Tensor, vt: Tensor, rows: Shard | None = None, columns: Shard | None = None
) -> tuple[Tensor, Tensor]:
    """u [M, R] and vt [R, N] of a worker; None: all of them.

    Raises ValueError if a shard reaches beyond the matrix.
    """
    for name, shard, size in (("rows", rows, u.shape[0]), ("columns", columns, vt.shape[1])):
        if shard is not None and shard.span.stop > size:
            raise ValueError(
                f"shard {shard.index} of {shard.size} {name} lies beyond the {size} that there are"
            )
    return (u if rows is None else u[rows.span]), (vt if columns is None else vt[:, columns.span])
