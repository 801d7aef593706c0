"""The ways in which a stage of a layer is computed on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from zweave.kernels import DeviceOps, LinearMode, Stack, StackedLinear, cuda_decode
from zweave.kernels.triton.gemm_config import MAX_SPLITS, use_max_splits
from zweave.kernels.triton.pdl import dependent_launches
from zweave.kernels.weight_stack import plain_parts

from .stages import Stage

# Tokens up to which the decode kernels of csrc/cuda are measured: beyond 32 they read the weights more than once.
DECODE_TOKENS = 64
Call = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class StageForm:
    """A way to compute a stage.

    name: what the tables call it, without the mode
    calls: of each copy, y of x and slot
    dependent: whether its kernels are launched as dependent ones
    is_predicted: whether `gpu_cost` has something to say about it
    """

    name: str
    calls: Callable[[Stage, LinearMode], list[Call]]
    dependent: bool = False
    is_predicted: bool = False
    most_tokens: int | None = None


def stage_forms(splits: list[int]) -> list[StageForm]:
    """splits: the most splits of a product that are tried beside the usual number."""
    forms = [
        StageForm("cuBLAS", _library),
        StageForm("Triton", _ours, is_predicted=True),
        StageForm("Triton PDL", partial(_ours, pdl=True), dependent=True, is_predicted=True),
        StageForm("CUDA decode", _decode, most_tokens=DECODE_TOKENS),
    ]
    return forms + [
        StageForm(f"Triton PDL, {most} splits", partial(_ours, pdl=True, splits=most), dependent=True)
        for most in splits
    ]


def _library(stage: Stage, mode: LinearMode) -> list[Call]:
    """Products of PyTorch, and kernels of ours for scales and gate."""
    return [_call(replace(stack, library_from=1), mode) for stack in stage.copies]


def _ours(stage: Stage, mode: LinearMode, pdl: bool = False, splits: int = MAX_SPLITS) -> list[Call]:
    return [_call(replace(stack, library_from=None), mode, pdl, splits) for stack in stage.copies]


def _call(stack: StackedLinear, mode: LinearMode, pdl: bool = False, splits: int = MAX_SPLITS) -> Call:
    def call(x: Tensor, slot: Tensor) -> Tensor:
        with _launching(pdl, splits):
            return stack(x, slot, mode)

    return call


@contextmanager
def _launching(pdl: bool, splits: int) -> Iterator[None]:
    use_max_splits(splits)
    try:
        with dependent_launches(pdl):
            yield
    finally:
        use_max_splits(MAX_SPLITS)


def _decode(stage: Stage, mode: LinearMode) -> list[Call]:
    """The kernels of csrc/cuda, which know no groups; raises NotImplementedError where they are not built."""
    if not cuda_decode.is_built():
        raise NotImplementedError("built without CUDA")
    return [decode_call(stack, mode) for stack in stage.copies]


def decode_call(
    stack: StackedLinear,
    mode: LinearMode,
    dense: Callable[..., Tensor] = cuda_decode.linear_decode,
    factored: Callable[..., Tensor] = cuda_decode.svf_linear_decode,
    delta: Callable[..., Tensor] = cuda_decode.svf_delta_linear_decode,
) -> Call:
    """A launch a stack for the base model, one or two for each of its linears under experts."""
    assert isinstance(stack.dense, Stack) and isinstance(stack.vt, Stack)
    assert stack.scale is not None
    ops: DeviceOps = stack.ops
    groups: list[Callable[..., Tensor]]
    if mode == LinearMode.DENSE:
        whole = stack.dense.whole
        groups = [lambda x, slot: dense(x, whole)]
    elif mode == LinearMode.FACTORED:
        plain_u = plain_parts(stack.u, stack.vt.whole.dtype, ops)
        scales = [part.contiguous() for part in stack.scale.split([u.shape[1] for u in plain_u], 1)]
        groups = [
            partial(_factored, factored, vt, u, scale)
            for vt, u, scale in zip(stack.vt.parts, plain_u, scales, strict=True)
        ]
    else:
        of_vt, of_u = stack.leading.values(stack.vt.whole.dtype, ops)
        deltas = stack.delta.split([len(vt) for vt in of_vt], 1)
        groups = [
            partial(_delta, delta, w, vt, u.contiguous(), row.contiguous())
            for w, vt, u, row in zip(stack.dense.parts, of_vt, of_u, deltas, strict=True)
        ]

    def call(x: Tensor, slot: Tensor) -> Tensor:
        parts = [group(x, slot) for group in groups]
        y = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return ops.silu_mul(*y.chunk(2, 1)) if stack.silu else y

    return call


def _factored(
    op: Callable[..., Tensor], vt: Tensor, u: Tensor, scale: Tensor, x: Tensor, slot: Tensor
) -> Tensor:
    return op(x, vt, u, scale, slot)


def _delta(
    op: Callable[..., Tensor], w: Tensor, vt: Tensor, u: Tensor, row: Tensor, x: Tensor, slot: Tensor
) -> Tensor:
    return op(x, w, vt, u, row, slot)
