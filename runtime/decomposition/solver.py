"""Where a matrix is decomposed, and by which drivers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ZweaveError
from .svd import DEVICE_DRIVERS, DRIVERS, TOLERANCE, Driver, Svd, relative_error, svd, working_bytes


@dataclass(frozen=True, slots=True)
class Solver:
    """Decomposes matrices on one device; what it returns is on the CPU.

    drivers: tried in turn.
    precision: type that relative errors are computed in.
    """

    device: torch.device
    drivers: Sequence[tuple[str, Driver]]
    precision: torch.dtype

    def solve(self, weight: Tensor) -> Svd:
        """The factors of a matrix [M, N]; ZweaveError as of `svd`, or if the device's memory is too little."""
        try:
            found = svd(weight.to(self.device), self.drivers, precision=self.precision)
            return replace(found, u=found.u.cpu(), sigma=found.sigma.cpu(), vt=found.vt.cpu())
        except RuntimeError as error:
            raise self._explained(error, weight) from None

    def check(self, weight: Tensor, stored: Svd) -> Svd | None:
        """The stored factors with their error, or None if they are not those of the matrix."""
        try:
            u, sigma, vt = (factor.to(self.device) for factor in (stored.u, stored.sigma, stored.vt))
            error = relative_error(weight.to(self.device).float(), u, sigma, vt, self.precision)
        except RuntimeError as fault:
            raise self._explained(fault, weight) from None
        return replace(stored, error=error) if error <= TOLERANCE else None

    def _explained(self, error: RuntimeError, weight: Tensor) -> Exception:
        # The libraries report what PyTorch's allocator did not refuse: CUBLAS_STATUS_ALLOC_FAILED and its like.
        if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            return error
        rows, columns = weight.shape
        need = working_bytes((rows, columns)) / (1 << 30)
        return ZweaveError(
            f"{self.device} is out of memory: {rows} x {columns} takes about {need:.1f} GiB there; "
            "free some, or decompose the model on the CPU before: `zweave decompose MODEL`, device='cpu'"
        )


ON_CPU = Solver(torch.device("cpu"), DRIVERS, torch.float32)


def on_device(device: torch.device) -> Solver:
    """The solver for an accelerator. Float64 throughout: its float32 products may be rounded to TF32."""
    return Solver(device, DEVICE_DRIVERS, torch.float64)
