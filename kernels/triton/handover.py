"""Tiles that some programs of a launch store and others of it read.

Whoever has stored a tile adds one to the counter of its tokens. Whoever reads waits until as many have as there are
tiles, and adds one more; the last of the readers sets the counter back to zero.

Nobody waits for a program of a higher number than its own. A device starts programs in the order of their numbers, so
that those that are waited for run, or have run, whenever somebody waits; and since they wait for nobody, no launch
stops. The interpreter runs one program after the other, in the same order: what it waits for is there.
"""

from .optional_triton import tl, triton


@triton.jit
def publish(counter: tl.tensor) -> None:
    """Says that a tile is stored."""
    # All threads have stored before one of them says so.
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait_for_tiles(counter: tl.tensor, tiles: tl.tensor, readers: tl.tensor) -> None:
    """Waits until so many tiles are stored, as each of so many readers does once."""
    # One thread asks for all: none can still be asking when the last reader sets the counter back.
    while tl.atomic_add(counter, 0, sem="relaxed", scope="gpu") < tiles:
        pass
    last = tl.atomic_add(counter, 1, sem="acquire", scope="gpu") == tiles + readers - 1
    if last:
        tl.store(counter, 0)
    tl.debug_barrier()
