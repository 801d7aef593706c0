"""The factors of W in few bits: one rounded coarsely, the other solved for, so that their product stays W.

W = U diag(sigma) V^T has full rank, so one factor is square, V^T where W is tall and U where it is wide. That one is
rounded to int4, Q. The other is A = W Q^-1 (tall) or Q^-1 W (wide) in float64, rounded to int8 by GPTQ against the
inputs that it meets. The base loses what rounding A costs alone. An expert's z acts on the same components, which are
no longer exactly orthogonal.

Both lie on grids that the kernels multiply: Q4_0 and Q8_0, groups of 32 inputs with scales in float16.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.kernels import Quantized, dequantize
from zweave.kernels.layout.quantize import Format

from .gptq import gptq, nearest

# The product grows by little where Q is close to orthogonal; where int4 left it near to singular rounding A would show.
_LARGEST_GROWTH = 4.0


@dataclass(frozen=True, slots=True)
class Refit:
    """W ~ u diag(scale) vt; under an expert u diag(scale * z) vt.

    u: [M, R] and vt: [R, N], the square one in int4, or int8 where int4 would not do, the other in int8; in groups of
        32 inputs whose scales are float16 values.
    scale: [R], float32.
    """

    u: Quantized
    scale: Tensor
    vt: Quantized

    @property
    def nbytes(self) -> int:
        """Bytes as stored, the scales in 16 bits."""
        values = self.u.data.nbytes + self.vt.data.nbytes
        return values + 2 * (self.u.scale.numel() + self.vt.scale.numel() + self.scale.numel())

    def merged(self, z: Tensor | None = None) -> Tensor:
        """The matrix [M, N] that the factors stand for, in float64; under z [R] if it is given."""
        scale = self.scale.double() if z is None else self.scale.double() * z.double()
        return (dequantize(self.u).double() * scale) @ dequantize(self.vt).double()


def refit(weight: Tensor, u: Tensor, vt: Tensor, moments: Tensor) -> Refit:
    """Rounds the factors of a matrix.

    weight: [M, N].
    u, vt: its singular vectors, [M, R] and [R, N].
    moments: [N, N], the mean of x x^T over the matrix's inputs x.
    The same arguments give the same bits on the same machine and number of threads.
    """
    exact, inputs = weight.double(), moments.double()
    tall = weight.shape[0] >= weight.shape[1]
    coarse, rounded, long = _divided(exact, vt if tall else u, tall)
    if not tall:
        size = _size(long)
        return Refit(coarse, torch.full((len(rounded),), size), gptq(long / size, inputs, "int8"))
    hidden = rounded @ inputs @ rounded.T
    # Components that carry much are rounded more finely; the scale of z takes it back.
    weights = hidden.diagonal().sqrt().sqrt()
    weights = torch.where(weights > 0, weights / weights.mean(), 1.0)
    balance = (1 / weights).float().double()
    met = balance[:, None] * hidden * balance
    long = long / balance
    size = _size(long)
    return Refit(gptq(long / size, met, "int8"), (size * balance).float(), coarse)


def output_error(weight: Tensor, approximation: Tensor, moments: Tensor) -> float:
    """Relative error of the outputs: the root of E |(W - W') x|^2 / E |W x|^2 over the inputs x of these moments."""
    exact, inputs = weight.double(), moments.double()
    lost = exact - approximation.double()
    norm = ((exact @ inputs) * exact).sum()
    return float((((lost @ inputs) * lost).sum() / norm).clamp(min=0).sqrt()) if norm > 0 else 0.0


def _size(matrix: Tensor) -> float:
    """A power of two, by which a matrix is divided without loss so that float16 holds the scales of its groups."""
    largest = float(matrix.abs().max())
    return 2.0 ** math.frexp(largest)[1] if largest > 0 else 1.0


def _divided(weight: Tensor, square: Tensor, tall: bool) -> tuple[Quantized, Tensor, Tensor]:
    """The square factor rounded, its values Q, and W Q^-1 (tall) or Q^-1 W.

    In int4; in int8 if dividing by that would blow up what rounding the other factor costs.
    """
    formats: tuple[Format, ...] = ("int4", "int8")
    for format in formats:
        coarse = nearest(square, format)
        rounded = dequantize(coarse).double()
        long, singular = torch.linalg.solve_ex(rounded, weight, left=not tall)
        if not singular.any() and long.norm() <= _LARGEST_GROWTH * weight.norm():
            break
    return coarse, rounded, long
