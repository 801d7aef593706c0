"""Work that shows a GPU's limits: kernels that read, and kernels that do next to nothing, one behind the other.

Needs nothing that has to be built, so that it may run beside the build.
"""

import triton
import triton.language as tl
from torch import Tensor

# float32 numbers of a program, and how many it takes at a time.
READ_BY_PROGRAM = 1 << 16
_READ_AT_ONCE = 1 << 12


@triton.jit
def _sum_kernel(x: tl.tensor, y: tl.tensor, COUNT: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """The sum of COUNT numbers a program."""
    first = x + tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, COUNT, BLOCK):
        acc += tl.load(first + start)
    tl.store(y + tl.program_id(0), tl.sum(acc))


@triton.jit
def _count_kernel(x: tl.tensor, PDL: tl.constexpr) -> None:
    """Adds 1 to a number."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    tl.store(x, tl.load(x) + 1)


def sum_triton(x: Tensor, y: Tensor) -> None:
    """Semantics: y[i] = the sum of row i of x.

    x: [n, READ_BY_PROGRAM], float32, contiguous.
    y: [n], float32.
    """
    _sum_kernel[(len(x),)](x, y, COUNT=READ_BY_PROGRAM, BLOCK=_READ_AT_ONCE, num_warps=8)


def count_triton(x: Tensor, dependent: bool) -> None:
    """Semantics: x += 1.

    x: [1], float32.
    dependent: launched before the kernel ahead of it ends, which sm_90 and newer can.
    """
    _count_kernel[(1,)](x, PDL=dependent, launch_pdl=dependent, num_warps=1)
