"""Mixtures of experts' scale vectors.

    z[b] = sum over e of alpha[b, e] * table[e]

    table [E, R]   alpha [B, E]   ->   z [B, R]   all float32

B mixtures, E experts, R components. Bytes: 4 (E R + B E + B R); FLOPs: 2 B E R. Far below the ridge for the
few mixtures made at a time, so it streams the table once. Experts are added in their order, one after the
other: a mixture is the same bit for bit whatever is mixed beside it. See docs/kernels/mix.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .triton.checks import check_device, on_device_of
from .triton.optional_triton import tl, triton


def mix_ref(table: Tensor, alpha: Tensor) -> Tensor:
    """Semantics: z = alpha @ table, in float32.

    table: [experts, rank].
    alpha: [mixtures, experts].
    """
    return alpha.float() @ table.float()


@triton.jit(do_not_specialize=["E"])
def _mix_kernel(
    table: tl.tensor,
    alpha: tl.tensor,
    z: tl.tensor,
    E: tl.tensor,
    R: tl.tensor,
    stride_table: tl.tensor,
    stride_alpha: tl.tensor,
    BLOCK_R: tl.constexpr,
) -> None:
    """z[b, r] for a tile of components r, one mixture b a row of programs."""
    b = tl.program_id(1).to(tl.int64)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    acc = tl.zeros((BLOCK_R,), dtype=tl.float32)
    for e in range(E):
        weight = tl.load(alpha + b * stride_alpha + e)
        acc += weight * tl.load(table + tl.cast(e, tl.int64) * stride_table + r, mask=r < R, other=0.0)
    tl.store(z + b * R + r, acc, mask=r < R)


@dataclass(frozen=True, slots=True)
class MixConfig:
    """Shape and resources of a tile.

    block_r: components.
    num_warps: warps of a program.
    """

    block_r: int
    num_warps: int


def mix_config(rank: int) -> MixConfig:
    """Picks the tile: four components a thread, a single warp for short rows."""
    return MixConfig(128, num_warps=1) if rank <= 2048 else MixConfig(512, num_warps=4)


def mix_triton(table: Tensor, alpha: Tensor) -> Tensor:
    """Launches the mix on a CUDA device (or in Triton's interpreter, on CPU tensors).

    Arguments as in `mix`. Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a
    wrong device.
    """
    _check(table, alpha)
    (E, R), B = table.shape, alpha.shape[0]
    z = table.new_empty(B, R)
    if z.numel() == 0:
        return z
    config = mix_config(R)
    with on_device_of(table):
        _mix_kernel[(triton.cdiv(R, config.block_r), B)](
            table,
            alpha,
            z,
            E,
            R,
            table.stride(0),
            alpha.stride(0),
            BLOCK_R=config.block_r,
            num_warps=config.num_warps,
        )
    return z


def _check(table: Tensor, alpha: Tensor) -> None:
    check_device("mix", table)
    if table.dim() != 2 or alpha.dim() != 2 or alpha.shape[1] != table.shape[0]:
        raise ValueError(
            f"mix: want table [E, R] and alpha [B, E], got {list(table.shape)} and {list(alpha.shape)}"
        )
    for name, tensor in (("table", table), ("alpha", alpha)):
        if tensor.dtype != torch.float32 or tensor.device != table.device:
            raise ValueError(
                f"mix: {name} must be float32 on {table.device}, not {tensor.dtype} on {tensor.device}"
            )
        if tensor.numel() and tensor.shape[1] > 1 and tensor.stride(1) != 1:
            raise ValueError(f"mix: {name} must be contiguous in its last dimension")


def mix(table: Tensor, alpha: Tensor) -> Tensor:
    """Semantics: z[b] = sum over e of alpha[b, e] * table[e], added in the order of the experts.

    table: [experts, rank], float32; rows may lie apart.
    alpha: [mixtures, experts], float32.
    Returns [mixtures, rank], float32.
    Raises: ValueError or RuntimeError on a wrong shape, stride, dtype or device.
    Source: Transformer-Squared (arXiv 2501.06252), section 3.2, few-shot adaptation.
    """
    return torch.ops.zweave.mix.default(table, alpha)
