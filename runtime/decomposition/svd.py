"""Singular value decomposition of one matrix: checked, and by another driver if the first fails."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import ZweaveError

Factors: TypeAlias = tuple[Tensor, Tensor, Tensor]
Driver: TypeAlias = Callable[[Tensor], Factors]

# Float32 LAPACK leaves 2e-6 on the matrices of a 135M model; ten times that points to a fault.
TOLERANCE = 2e-5


@dataclass(frozen=True, slots=True)
class Svd:
    """W = u diag(sigma) vt, float32, sigma descending, the largest entry of each row of vt positive.

    u: [M, R].
    sigma: [R].
    vt: [R, N].
    error: ||W - u diag(sigma) vt|| / ||W||, Frobenius norms.
    driver: name of the algorithm that found them.
    """

    u: Tensor
    sigma: Tensor
    vt: Tensor
    error: float
    driver: str


def gesdd(tall: Tensor) -> Factors:
    """LAPACK's divide and conquer in float32. tall: [M, N], M >= N -> u [M, N], sigma [N], vt [N, N]."""
    return torch.linalg.svd(tall, full_matrices=False)


def gesdd_double(tall: Tensor) -> Factors:
    """The same in float64, which converges where float32 stalls."""
    return torch.linalg.svd(tall.double(), full_matrices=False)


def gram(tall: Tensor) -> Factors:
    """Eigenvectors V of the Gram matrix, then the QR factors of W V, all in float64.

    W V has orthogonal columns, so R is diagonal up to rounding, and Q is orthonormal even if W lacks rank. The
    Gram matrix squares the condition: singular values below 1.5e-8 (the root of float64's epsilon) of the largest
    come out with an absolute error of about that, which is less than what float32 can tell.
    """
    double = tall.double()
    v = torch.linalg.eigh(double.T @ double).eigenvectors
    del double  # QR needs the room
    # The large first: a column of rounding noise at the front would turn all that follow it.
    v = v.flip(1)
    q, r = torch.linalg.qr(tall.double() @ v)
    scale = r.diagonal()
    sigma, order = scale.abs().sort(descending=True)
    signs = torch.where(scale < 0, -1.0, 1.0)
    return q[:, order], sigma, (v * signs)[:, order].T


DRIVERS: tuple[tuple[str, Driver], ...] = (("gesdd", gesdd), ("gesdd64", gesdd_double), ("gram64", gram))
# On an accelerator float64 is cheap beside the iterations of an SVD, of which the Gram matrix needs none; the second
# is cuSOLVER's, by PyTorch's choice of Jacobi or QR iteration.
DEVICE_DRIVERS: tuple[tuple[str, Driver], ...] = (("gram64", gram), ("svd64", gesdd_double))


def svd(
    weight: Tensor,
    drivers: Sequence[tuple[str, Driver]] = DRIVERS,
    tolerance: float = TOLERANCE,
    precision: torch.dtype = torch.float32,
) -> Svd:
    """Decomposes a matrix [M, N] of any floating type; the factors are float32, on the matrix's device.

    Drivers are tried in turn until one converges within `tolerance`. Raises ZweaveError if the matrix holds
    NaN or infinity, or if none does.

    precision: type that the relative error is computed in.
    """
    weight = weight.float()
    # Cheaper than a test of every element and as sure: NaN and infinity survive the sum.
    if not torch.linalg.vector_norm(weight).isfinite():
        raise ZweaveError("the weights hold NaN, infinity or numbers whose squares overflow")
    # LAPACK is a third faster on tall matrices.
    wide = weight.shape[0] < weight.shape[1]
    tall = weight.T.contiguous() if wide else weight
    del weight
    failures = []
    for name, driver in drivers:
        try:
            u, sigma, vt = (factor.float().contiguous() for factor in driver(tall))
        except torch.linalg.LinAlgError:
            failures.append(f"{name} did not converge")
            continue
        error = relative_error(tall, u, sigma, vt, precision)
        if error <= tolerance:
            if wide:
                u, vt = vt.T.contiguous(), u.T.contiguous()
            signs = vt.gather(1, vt.abs().argmax(1, keepdim=True)).sign()
            return Svd(u.mul_(signs.T), sigma, vt.mul_(signs), error, name)
        failures.append(f"{name} left a relative error of {error:.1e}")
    raise ZweaveError(f"no decomposition was found: {', '.join(failures)}")


def relative_error(
    weight: Tensor, u: Tensor, sigma: Tensor, vt: Tensor, precision: torch.dtype = torch.float32
) -> float:
    """||W - u diag(sigma) vt|| / ||W||, Frobenius norms; infinite if a factor is not finite."""
    norm = float(torch.linalg.vector_norm(weight))
    weight, vt = weight.to(precision), vt.to(precision)
    rest = torch.addmm(weight, u.to(precision) * sigma.to(precision), vt, alpha=-1)
    error = float(torch.linalg.vector_norm(rest))
    # The comparison is false for NaN too.
    return error / max(norm, torch.finfo(torch.float32).tiny) if error >= 0 else float("inf")


def working_bytes(shape: tuple[int, int]) -> int:
    """Upper bound of what `svd` takes at its peak, whatever driver it ends with: measured, and rounded up."""
    large, small = max(shape), min(shape)
    return 4 * (8 * large * small + 10 * small * small) + (8 << 20)
