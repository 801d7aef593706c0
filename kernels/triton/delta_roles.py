"""Who computes what in a launch of the delta linear, in both of its kernels. Without W x it is the factored linear.

    programs of h    h = table * (Vt x)        h_parts for each of its tiles
    programs of y    y = W x + U h             y_parts for each of its tiles

A tile has BLOCK_T tokens and BLOCK_M components or outputs. The splits of a sum of y are those of W x and behind them
those of U h. A tile's parts take equal shares of its splits, in their order; the last one to finish adds them up.
Programs of h have the lowest numbers; those of y that read h wait for its tiles of their tokens, see handover.py. A
tile of tokens that are all in slot 0 has no h in a delta: nobody computes it, and nobody waits for it.
"""

from .gemm_tile import any_of, group_of
from .handover import wait_for_tiles
from .optional_triton import tl, triton
from .split_k import arrive_is_last


@triton.jit
def role_of_program(
    tiles_t: tl.tensor, h_tiles: tl.tensor, y_tiles: tl.tensor, h_parts: tl.tensor, y_parts: tl.tensor
) -> tl.tuple:
    """Whether a program is of h, its tile of tokens, its tile of components or outputs, and its part of how many.

    h_tiles, y_tiles: tiles for each tile of tokens. Those of one weight tile run together, and it leaves memory once.
    """
    program, h_programs = tl.program_id(0), tiles_t * h_tiles * h_parts
    of_h = program < h_programs
    program = tl.where(of_h, program, program - h_programs)
    tiles = tiles_t * tl.where(of_h, h_tiles, y_tiles)
    part, tile = program // tiles, program % tiles
    return of_h, tile % tiles_t, tile // tiles_t, part, tl.where(of_h, h_parts, y_parts)


@triton.jit
def group_of_role(
    of_h: tl.tensor, tile: tl.tensor, ranks: tl.tuple, outputs: tl.tuple, BLOCK_M: tl.constexpr
) -> tl.tuple:
    """As `group_of`, in the components for a program of h."""
    group, number, column, width = group_of(tile, outputs, BLOCK_M)
    h_group, h_number, h_column, h_width = group_of(tile, ranks, BLOCK_M)
    return (
        tl.where(of_h, h_group, group),
        tl.where(of_h, h_number, number),
        tl.where(of_h, h_column, column),
        tl.where(of_h, h_width, width),
    )


@triton.jit
def splits_of_program(
    of_h: tl.tensor,
    part: tl.tensor,
    parts: tl.tensor,
    h_splits: tl.tensor,
    w_splits: tl.tensor,
    u_splits: tl.tensor,
) -> tl.tuple:
    """Splits of W that a program sums, and then those of a factor, Vt or U: from, to, from, to."""
    share = tl.where(of_h, h_splits, w_splits + u_splits) // parts
    first, last = part * share, (part + 1) * share
    w_last = tl.where(of_h, first, tl.minimum(last, w_splits))
    before = tl.where(of_h, 0, w_splits)
    return first, w_last, tl.maximum(first - before, 0), last - before


@triton.jit
def wait_for_h(
    ready: tl.tensor,
    adapted: tl.tensor,
    reads_h: tl.tensor,
    h_tiles: tl.tensor,
    y_tiles: tl.tensor,
    y_parts: tl.tensor,
    u_splits: tl.tensor,
) -> None:
    """Waits for the tiles of h, if a program reads any and there are any.

    ready: the counter of the program's tile of tokens.
    adapted: which of these have an h.
    """
    if reads_h & any_of(adapted):
        wait_for_tiles(ready, h_tiles, y_tiles * tl.where(y_parts > 1, u_splits, 1))


@triton.jit
def finish_part(
    semaphores: tl.tensor,
    of_h: tl.tensor,
    tile_t: tl.tensor,
    tile_m: tl.tensor,
    tiles_t: tl.tensor,
    h_tiles: tl.tensor,
    parts: tl.tensor,
) -> tl.tensor:
    """Arrives at a tile's semaphore. True for the last of its parts. Behind the counters lie those of h, then of y."""
    tile = tl.where(of_h, 1, 1 + h_tiles) * tiles_t + tile_m * tiles_t + tile_t
    return arrive_is_last(semaphores + tile, parts)
