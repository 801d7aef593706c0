"""Decomposition of a model's adapted matrices, W = U diag(sigma) V^T, kept in the cache."""

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.module_name import layer_of
from ..checkpoint.weight_source import WeightSource
from ..errors import ZweaveError
from ..io.atomic_write import flush
from ..io.cache_dir import cache_dir, disk_errors, lock, require_space
from ..io.progress import Report, progress_bar
from ..io.tensor_file import open_tensors, save_tensors
from .bounded_pool import BoundedPool, Job
from .svd import TOLERANCE, Svd, relative_error, svd, working_bytes

FORMAT = "zweave-decomposition-1"
DEFAULT_MEMORY = 2 << 30


@dataclass(frozen=True, slots=True)
class Matrix:
    """An entry of the index: shape (M, N) of W, size of the file, relative error and driver of the SVD."""

    shape: tuple[int, int]
    size: int
    error: float
    driver: str


class Decomposition:
    """The factors of all adapted matrices, memory mapped. Get one by `decompose` or `Decomposition.open`."""

    def __init__(self, directory: Path, digest: str, matrices: Mapping[str, Matrix]) -> None:
        self.directory = directory
        self.digest = digest
        self.matrices = matrices

    @classmethod
    def open(cls, digest: str) -> "Decomposition":
        """Opens the cached decomposition of the weights with this digest (`Checkpoint.digest`).

        Raises ZweaveError if there is none, or its files are damaged.
        """
        directory = _directory(digest)
        if not directory.is_dir():
            raise ZweaveError(f"the model {digest[:12]} is not decomposed: run `zweave decompose MODEL`")
        try:
            matrices = _read_index(directory / "index.json", digest)
            for module, matrix in matrices.items():
                _check_file(_file(directory, module), matrix)
        except ZweaveError as error:
            raise ZweaveError(
                f"the decomposition is damaged ({error}): run `zweave decompose MODEL --force`"
            ) from None
        return cls(directory, digest, matrices)

    @property
    def names(self) -> list[str]:
        """The adapted matrices, in layer order."""
        return list(self.matrices)

    @property
    def errors(self) -> list[float]:
        """Relative reconstruction errors ||W - U diag(sigma) V^T|| / ||W||, in the order of `names`."""
        return [matrix.error for matrix in self.matrices.values()]

    def factors(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """u [M, R], sigma [R], vt [R, N], float32, memory mapped: copy before changing them."""
        with open_tensors(_file(self.directory, name)) as handle:
            return handle.get_tensor("u"), handle.get_tensor("sigma"), handle.get_tensor("vt")

    def sigma(self, name: str) -> Tensor:
        """Singular values [R], float32, descending."""
        with open_tensors(_file(self.directory, name)) as handle:
            return handle.get_tensor("sigma").clone()


def decompose(
    source: WeightSource,
    *,
    progress: Report | None = None,
    workers: int | None = None,
    memory: int | None = None,
    force: bool = False,
) -> Decomposition:
    """Opens the model's decomposition from the cache, or makes it.

    progress: told how many matrices are done; by default a bar on standard error shows it.
    workers: matrices at once, one core each; by default as many as PyTorch has threads.
    memory: bytes that the decompositions under way may take together (`memory_bound`).
    force: make it anew even if it is there.

    A second process waits for the first. What a killed run had finished is checked and kept. Raises
    ZweaveError if a matrix is not finite, the memory is too little, or the disk is full or cannot be written.
    """
    digest = source.digest()
    shapes = source.adapted_shapes()
    bound = memory_bound(shapes, memory)
    workers = torch.get_num_threads() if workers is None else workers
    if workers < 1:
        raise ZweaveError(f"at least 1 worker is needed, not {workers}")
    target = _directory(digest)
    if force or not target.is_dir():
        with nullcontext(progress) if progress else progress_bar() as report:
            waiting = partial(report, "waiting for another process that decomposes this model", 0, 0)
            with lock(target, waiting):
                if force or not target.is_dir():
                    _make(source, digest, workers, bound, report)
    found = Decomposition.open(digest)
    if {module: matrix.shape for module, matrix in found.matrices.items()} != shapes:
        raise ZweaveError("the decomposition is of other matrices: run `zweave decompose MODEL --force`")
    return found


def memory_bound(shapes: Mapping[str, tuple[int, int]], memory: int | None = None) -> int:
    """Bytes that `decompose` keeps to: `memory`, or 2 GiB or what the largest matrix needs, if that is more.

    Raises ZweaveError if the largest matrix needs more than `memory`.
    """
    module = max(shapes, key=lambda name: working_bytes(shapes[name]))
    need = working_bytes(shapes[module])
    if memory is None:
        return max(DEFAULT_MEMORY, need)
    if memory < need:
        raise ZweaveError(
            f"decomposing {module} takes {need / (1 << 30):.3f} GiB, {memory / (1 << 30):.3f} are allowed: "
            "allow more memory"
        )
    return memory


def _make(source: WeightSource, digest: str, workers: int, memory: int, report: Report) -> None:
    shapes = source.adapted_shapes()
    target = _directory(digest)
    unfinished = target.with_name(f"{digest}.partial")
    with disk_errors(unfinished):
        for removed in target.parent.glob(".*.removed"):
            shutil.rmtree(removed)
        unfinished.mkdir(parents=True, exist_ok=True)
        for stale in unfinished.glob(".*.tmp"):
            stale.unlink()
    missing = [shape for module, shape in shapes.items() if not _file(unfinished, module).is_file()]
    require_space(unfinished, sum(map(_stored_bytes, missing)))
    jobs = [
        Job(working_bytes(shape), partial(_factor, source, module, unfinished))
        for module, shape in shapes.items()
    ]
    found: dict[str, Matrix] = {}
    stage = f"decomposing within {memory / (1 << 30):.1f} GiB"
    report(stage, 0, len(shapes))
    for module, matrix in BoundedPool(jobs, workers, memory).run():
        found[module] = matrix
        report(stage, len(found), len(shapes))
    with disk_errors(unfinished):
        for module in shapes:
            flush(_file(unfinished, module))
        _write_index(unfinished / "index.json", digest, {module: found[module] for module in shapes})
        flush(unfinished)
        if target.is_dir():
            # The old entry stays until the new one is whole.
            removed = target.with_name(f".{digest}.removed")
            target.rename(removed)
            unfinished.rename(target)
            shutil.rmtree(removed)
        else:
            unfinished.rename(target)
        flush(target.parent)


def _factor(source: WeightSource, module: str, directory: Path) -> tuple[str, Matrix]:
    """Brings one matrix's file into `directory`, unless a sound one is there."""
    path = _file(directory, module)
    weight = source.tensor(f"{module}.weight")
    shape = (weight.shape[0], weight.shape[1])
    try:
        result = _read_back(path, weight)
    except ZweaveError:
        try:
            result = svd(weight)
        except ZweaveError as error:
            raise ZweaveError(f"{module} cannot be decomposed: {error}") from None
        tensors = {"u": result.u, "sigma": result.sigma, "vt": result.vt}
        # Flushed all together at the end; a file that a failing machine spoilt is found by its error.
        save_tensors(path, tensors, {"driver": result.driver}, to_disk=False)
    return module, Matrix(shape, path.stat().st_size, result.error, result.driver)


def _read_back(path: Path, weight: Tensor) -> Svd:
    with open_tensors(path) as handle:
        _check_shapes(handle, (weight.shape[0], weight.shape[1]))
        u, sigma, vt = handle.get_tensor("u"), handle.get_tensor("sigma"), handle.get_tensor("vt")
        driver = (handle.metadata() or {}).get("driver", "unknown")
    error = relative_error(weight.float(), u, sigma, vt)
    if not error <= TOLERANCE:
        raise ZweaveError(f"{path} does not hold the factors of its matrix")
    return Svd(u, sigma, vt, error, driver)


def _check_file(path: Path, matrix: Matrix) -> None:
    with open_tensors(path) as handle:
        _check_shapes(handle, matrix.shape)
    if path.stat().st_size != matrix.size:
        raise ZweaveError(f"{path} has {path.stat().st_size} bytes, the index says {matrix.size}")


def _check_shapes(handle: Any, shape: tuple[int, int]) -> None:
    rows, columns, rank = *shape, min(shape)
    expected = {"u": [rows, rank], "sigma": [rank], "vt": [rank, columns]}
    views = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
    found = {key: view.get_shape() for key, view in views.items()}
    if found != expected or any(view.get_dtype() != "F32" for view in views.values()):
        raise ZweaveError(f"its tensors are {found}, not {expected} in float32")


def _read_index(path: Path, digest: str) -> dict[str, Matrix]:
    try:
        index = json.loads(path.read_text())
        if index["format"] != FORMAT or index["digest"] != digest:
            raise ZweaveError(f"{path} is of another format or model")
        matrices = {
            module: Matrix(
                (int(entry["shape"][0]), int(entry["shape"][1])),
                int(entry["size"]),
                float(entry["error"]),
                str(entry["driver"]),
            )
            for module, entry in index["matrices"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ZweaveError(f"{path} is not a readable index") from None
    # A name that is not a matrix's could lead out of the folder.
    for module in matrices:
        layer_of(module)
    return matrices


def _write_index(path: Path, digest: str, matrices: Mapping[str, Matrix]) -> None:
    entries = {
        module: {"shape": matrix.shape, "size": matrix.size, "error": matrix.error, "driver": matrix.driver}
        for module, matrix in matrices.items()
    }
    path.write_text(json.dumps({"format": FORMAT, "digest": digest, "matrices": entries}, indent=1) + "\n")
    flush(path)


def _directory(digest: str) -> Path:
    return cache_dir() / "decompositions" / digest


def _file(directory: Path, module: str) -> Path:
    return directory / f"{module}.safetensors"


def _stored_bytes(shape: tuple[int, int]) -> int:
    rows, columns = shape
    # 4 KiB for the header and the rest of the last disk block.
    return 4 * min(shape) * (rows + columns + 1) + 4096
