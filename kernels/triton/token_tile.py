"""The tokens' side of a step of the GEMM."""

from .optional_triton import INTERPRETED, tl, triton


@triton.jit
def x_step(
    x_rows: tl.tensor, in_t: tl.tensor, N: tl.tensor, step: tl.tensor, BLOCK_N: tl.constexpr
) -> tl.tensor:
    """The tokens' inputs of a step, [BLOCK_T, BLOCK_N]; zeros beyond them.

    The interpreter's dot is wrong for bf16 operands, so there they become float32.
    """
    n = step * BLOCK_N + tl.arange(0, BLOCK_N)
    x_tile = tl.load(x_rows + n[None, :], mask=in_t[:, None] & (n < N)[None, :], other=0.0)
    if INTERPRETED:
        x_tile = x_tile.to(tl.float32)
    return x_tile
