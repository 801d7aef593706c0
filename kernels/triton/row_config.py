"""Tiles of the kernels that go over rows: the norms, `silu_mul`, `scale_by_slot`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowConfig:
    """Shape and resources of a tile.

    block_t: rows.
    block_n: numbers of a row.
    num_warps: warps of a program.
    """

    block_t: int
    block_n: int
    num_warps: int


def row_config(width: int) -> RowConfig:
    """A tile of a row for values that need no other: eight numbers a thread, 16 bytes in bf16."""
    block_n = min(1024, max(256, _power_of_two(width)))
    return RowConfig(1, block_n, num_warps=block_n // 256)


def whole_row_config(width: int) -> RowConfig:
    """A tile of whole rows, several where they are short; the same whatever number of rows there is."""
    block_n = _power_of_two(width)
    block_t = max(1, 512 // block_n)
    return RowConfig(block_t, block_n, num_warps=min(16, max(1, block_t * block_n // 512)))


def _power_of_two(width: int) -> int:
    """The least that is not below the width."""
    return 1 << max(width - 1, 0).bit_length()
