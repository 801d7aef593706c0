"""The three steps of a matrix: it is read, with the factors of an earlier run; decomposed; and written."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..checkpoint.weight_source import WeightSource
from ..errors import ZweaveError
from ..io.tensor_file import open_tensors, save_tensors
from .cache_entry import Matrix, check_shapes, factors_file
from .solver import Solver
from .svd import Svd


@dataclass(frozen=True, slots=True)
class Read:
    """A matrix W [M, N], and what an earlier run wrote as its factors, not compared with it yet."""

    module: str
    weight: Tensor
    stored: Svd | None


@dataclass(frozen=True, slots=True)
class Factored:
    """A matrix's factors. on_disk: an earlier run wrote them."""

    module: str
    svd: Svd
    on_disk: bool


def read(source: WeightSource, module: str, directory: Path) -> Read:
    """Reads a matrix, and its factors if `directory` has a readable file of them."""
    weight = source.tensor(f"{module}.weight")
    try:
        return Read(module, weight, _stored(factors_file(directory, module), weight))
    except ZweaveError:
        return Read(module, weight, None)


def factor(matrix: Read, solver: Solver) -> Factored:
    """Keeps stored factors that are sound, and makes others. Raises ZweaveError, with the matrix's name."""
    try:
        kept = solver.check(matrix.weight, matrix.stored) if matrix.stored else None
        return Factored(matrix.module, kept or solver.solve(matrix.weight), kept is not None)
    except ZweaveError as error:
        raise ZweaveError(f"{matrix.module} cannot be decomposed: {error}") from None


def write(factored: Factored, directory: Path) -> tuple[str, Matrix]:
    """Writes the factors' file unless it is there; returns the matrix's entry of the index."""
    found, path = factored.svd, factors_file(directory, factored.module)
    if not factored.on_disk:
        tensors = {"u": found.u, "sigma": found.sigma, "vt": found.vt}
        # Flushed all together at the end; a file that a failing machine spoilt is found by its error.
        save_tensors(path, tensors, {"driver": found.driver}, to_disk=False)
    shape = (found.u.shape[0], found.vt.shape[1])
    return factored.module, Matrix(shape, path.stat().st_size, found.error, found.driver)


def _stored(path: Path, weight: Tensor) -> Svd:
    with open_tensors(path) as handle:
        check_shapes(handle, (weight.shape[0], weight.shape[1]))
        u, sigma, vt = handle.get_tensor("u"), handle.get_tensor("sigma"), handle.get_tensor("vt")
        return Svd(u, sigma, vt, float("inf"), (handle.metadata() or {}).get("driver", "unknown"))
