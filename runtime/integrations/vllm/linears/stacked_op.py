"""The op that a linear on a GPU is in vLLM's compiled model, and in its CUDA graphs.

The compiler takes what it sees of a step for constants: it must not see the mode. So the mode is a tensor on the host
that the op reads, whenever it is launched step by step, and once when a graph is captured.
"""

from functools import partial

import torch
from torch import Tensor

from zweave.kernels import (
    LIBRARY_FROM,
    REFERENCE_OPS,
    DeltaFactors,
    DeviceOps,
    LinearMode,
    Quantized,
    Stack,
    StackedLinear,
    triton_ops,
)


def compute(
    ops: DeviceOps,
    x: Tensor,
    slot: Tensor,
    mode: Tensor,
    dense: Tensor | None,
    vt: Tensor,
    u: list[Tensor],
    scale: Tensor | None,
    delta: Tensor,
    delta_rank: list[int],
    vt_scale: Tensor | None,
    u_scale: list[Tensor],
    bias: Tensor | None,
) -> Tensor:
    """y [T, sum of M] of x [T, N], as `StackedLinear` computes it; all tokens in one mode.

    slot: [at least T] int32 on the device
    mode: [1] on the host, the `LinearMode` that the step needs, as `DeviceStep` has it
    Other arguments: those of `StackedWeights`
    """
    stack = None
    if vt_scale is not None:
        leading = DeltaFactors((_int8(vt, vt_scale),), tuple(map(_int8, u, u_scale)))
    else:
        stack = Stack(vt, vt.split([each.shape[1] for each in u]))
        leading = DeltaFactors.leading(stack.parts, u, delta_rank)
    linear = StackedLinear(
        ops=ops,
        dense=None if dense is None else Stack(dense, dense.split([len(each) for each in u])),
        vt=stack,
        u=tuple(u) if stack else (),
        scale=scale,
        leading=leading,
        delta=delta,
        bias=bias,
        library_from=LIBRARY_FROM,
    )
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
    needed = LinearMode(int(mode))
    return linear(x, slot[: len(x)], mode_for(needed, dense is not None, scale is not None, capturing))


def _int8(data: Tensor, scale: Tensor) -> Quantized:
    rows, columns = data.shape
    return Quantized(data, scale, (rows, columns), "int8", columns)


def mode_for(needed: LinearMode, keeps_dense: bool, keeps_factors: bool, capturing: bool) -> LinearMode:
    """The mode of a linear in a step that needs one as general as `needed`, by the weights that it keeps.

    A graph that is captured with adapters is replayed for others, and takes the mode that serves them all. One that is
    captured without any is replayed without any.
    """
    if not keeps_dense:
        return LinearMode.FACTORED
    if needed == LinearMode.DENSE:
        return needed
    if not keeps_factors:
        return LinearMode.DELTA
    return LinearMode.FACTORED if capturing else needed


# An op lasts as long as the library object that it was defined through.
_LIBRARY = torch.library.Library("zweave_vllm", "DEF")
_LIBRARY.define(
    "stacked_linear(Tensor x, Tensor slot, Tensor mode, Tensor? dense, Tensor vt, Tensor[] u, Tensor? scale, "
    "Tensor delta, int[] delta_rank, Tensor? vt_scale, Tensor[] u_scale, Tensor? bias) -> Tensor"
)
_LIBRARY.impl("stacked_linear", partial(compute, triton_ops()), "CUDA")
# For tests, as vLLM on a CPU has linears of another kind.
_LIBRARY.impl("stacked_linear", partial(compute, REFERENCE_OPS), "CPU")


@torch.library.register_fake("zweave_vllm::stacked_linear", lib=_LIBRARY)
def _fake(
    x: Tensor, slot: Tensor, mode: Tensor, dense: Tensor | None, vt: Tensor, u: list[Tensor], *rest: object
) -> Tensor:
    return x.new_empty(x.shape[0], sum(each.shape[0] for each in u))


stacked_linear = torch.ops.zweave_vllm.stacked_linear.default
