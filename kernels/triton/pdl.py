"""Programmatic dependent launch: a kernel starts while the one before it on the stream still ends.

A kernel launched so waits by itself (`griddepcontrol.wait`) for the whole of its predecessor before it reads what that
may have written, and before any write or atomic: workspace, semaphores and memory that is used again are then as safe
as without. Weights are nobody's result, so it asks for the first of its own before it waits: the memory does not idle
between two kernels. Since every kernel waits, all that went before has ended, not only the predecessor.

PDL in a kernel is whether it does so: inside `dependent_launches`, from sm_90 on, and not in the interpreter. It is not
measured yet, hence off elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .gemm_config import device_of
from .grid_sum import GRID_GROUP, STEP_BYTES
from .optional_triton import INTERPRETED, tl, triton

# Of each row of weights, 128 bytes a line: with 64 rows to a tile 32 KiB a program.
PREFETCHED_LINES = tl.constexpr(4)
# $0: nothing; $1: an address; $2: whether to fetch it.
_PREFETCH = tl.constexpr("""{
.reg .pred wanted;
setp.ne.b32 wanted, $2, 0;
@wanted prefetch.global.L2 [$1];
mov.b32 $0, 0;
}""")

_wanted: ContextVar[bool] = ContextVar("whether launches are dependent ones", default=False)


@contextmanager
def dependent_launches(wanted: bool = True) -> Iterator[None]:
    """Whether kernels that can are launched so inside, or captured."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def has_dependent_launches(index: int | None) -> bool:
    """Whether the CUDA device of an index has them."""
    return device_of(index).capability >= (9, 0)


def launch_options(index: int | None) -> dict[str, bool]:
    """What a kernel is launched with on the CUDA device of an index: its PDL, and how Triton is to launch it."""
    pdl = _wanted.get() and not INTERPRETED and has_dependent_launches(index)
    return {"PDL": pdl, "launch_pdl": pdl}


@triton.jit
def prefetch_weights(operand: tl.tuple, first: tl.tensor, FORMAT: tl.constexpr, GROUP: tl.constexpr) -> None:
    """Asks for the lines from stored number `first` on of a tile's weights, see gemm_tile.py, into L2."""
    w_rows, in_m, width = operand[2], operand[3], operand[6]
    if GROUP == GRID_GROUP:
        # The rows of a panel lie side by side, and those of its next step behind them.
        line = 2 * STEP_BYTES if FORMAT == "Q8_0" else STEP_BYTES
    else:
        line = 1024 // w_rows.dtype.element_ty.primitive_bitwidth
    n = first + line * tl.arange(0, PREFETCHED_LINES)
    wanted = in_m[:, None] & (n < width)[None, :]
    tl.inline_asm_elementwise(
        _PREFETCH,
        "=r,l,r",
        [(w_rows + n[None, :]).to(tl.int64), wanted.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def launch_dependents() -> None:
    """Lets the next kernel start as soon as there is room for it."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_predecessor() -> None:
    tl.extra.cuda.gdc_wait()


@triton.jit
def wait_at_start(PDL: tl.constexpr) -> None:
    """How a kernel that reads no weights begins."""
    if PDL:
        launch_dependents()
        wait_for_predecessor()
