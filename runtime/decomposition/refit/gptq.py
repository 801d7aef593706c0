"""Rounding that makes up in later columns for what earlier ones lost: GPTQ (arXiv 2210.17323), in float64."""

import torch
from torch import Tensor

from zweave.kernels import Quantized
from zweave.kernels.layout.quantize import LIMITS, Format, of_codes

# That of the kernels' grids.
GROUP = 32
# Share of the mean second moment that is added to each, as in the paper: inputs that were never seen stay bounded.
_DAMPING = 0.01


def gptq(weight: Tensor, moments: Tensor, format: Format, group: int = GROUP) -> Quantized:
    """Rounds a matrix so that its outputs change little.

    Semantics: minimises, column by column, the trace of (W - Q) moments (W - Q)^T. Each group's scale follows from
    what its columns have become when it is reached; scales are float16 values.
    weight: [out_features, in_features], finite.
    moments: [in_features, in_features], the mean of x x^T over the inputs x.
    """
    left = weight.double().clone()
    factor = _update_factor(moments.double())
    codes = torch.empty_like(left)
    scales = []
    for start in range(0, left.shape[1], group):
        stop = min(start + group, left.shape[1])
        block = left[:, start:stop]
        scale = group_scale(block, format)
        losses = torch.empty_like(block)
        for column in range(stop - start):
            row = factor[start + column, start + column : stop]
            values = block[:, column]
            code = (values / scale).round().clamp(-LIMITS[format], LIMITS[format])
            codes[:, start + column] = code
            losses[:, column] = (values - code * scale) / row[0]
            block[:, column + 1 :] -= losses[:, column, None] * row[1:]
        left[:, stop:] -= losses @ factor[start:stop, stop:]
        scales.append(scale)
    return of_codes(codes, torch.stack(scales, 1), format, group)


def nearest(weight: Tensor, format: Format, group: int = GROUP) -> Quantized:
    """Rounds each value by itself, with scales as `gptq` has them."""
    blocks = weight.double().split(group, 1)
    scales = [group_scale(block, format) for block in blocks]
    codes = [
        (block / scale[:, None]).round().clamp(-LIMITS[format], LIMITS[format])
        for block, scale in zip(blocks, scales, strict=True)
    ]
    return of_codes(torch.cat(codes, 1), torch.stack(scales, 1), format, group)


def group_scale(block: Tensor, format: Format) -> Tensor:
    """[rows] in float64: the largest magnitude of each row over the format's limit, as float16 holds it."""
    scale = (block.abs().amax(1) / LIMITS[format]).half().double()
    # A group of zeros has no scale; any will do.
    return torch.where(scale > 0, scale, 1.0)


def _update_factor(moments: Tensor) -> Tensor:
    """Upper triangular, U^T U the inverse of the damped moments: how a column's loss spreads over those after it."""
    damped = moments.clone()
    mean = moments.diagonal().mean()
    # Without any input all losses count alike.
    damped.diagonal().add_(torch.where(mean > 0, _DAMPING * mean, 1.0))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
