"""Programmatic dependent launch: a kernel starts while the one before it on the stream still ends.

A kernel launched so waits by itself (`griddepcontrol.wait`) for the whole of its predecessor before it reads what that
may have written, and before any write or atomic: workspace, semaphores and memory that is used again are then as safe
as without. Weights are nobody's result, so it asks for the first of its own before it waits: the memory does not idle
between two kernels. Since every kernel waits, all that went before has ended, not only the predecessor.

PDL in a kernel is whether it does so; off in the interpreter and below sm_90, and until `use_pdl` turns it on.
"""

from .gemm_config import Device
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

_wanted = False


def use_pdl(wanted: bool) -> None:
    """Whether kernels that can are launched so from now on. Not measured yet, hence off by default."""
    global _wanted
    _wanted = wanted


def pdl_on(device: Device) -> bool:
    return _wanted and device.capability >= (9, 0) and not INTERPRETED


@triton.jit
def prefetch_weights(operand: tl.tuple, first: tl.tensor) -> None:
    """Asks for the lines from stored number `first` on of a tile's weights, see gemm_tile.py, into L2."""
    w_rows, in_m, width = operand[2], operand[3], operand[6]
    LINE: tl.constexpr = 1024 // w_rows.dtype.element_ty.primitive_bitwidth
    n = first + LINE * tl.arange(0, PREFETCHED_LINES)
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
