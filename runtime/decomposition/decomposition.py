"""Decomposition of a model's adapted matrices, W = U diag(sigma) V^T, kept in the cache."""

import shutil
from collections.abc import Generator, Mapping
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.weight_source import WeightSource
from ..device import parse_device
from ..errors import ZweaveError
from ..io.atomic_write import flush
from ..io.cache_dir import disk_errors, lock, require_space
from ..io.progress import Report, progress_bar
from ..io.tensor_file import open_tensors
from .bounded_pool import BoundedPool, Job
from .cache_entry import (
    Matrix,
    check_factors,
    entry_directory,
    factors_file,
    read_index,
    stored_bytes,
    write_index,
)
from .factoring import factor, read, write
from .pipeline import pipelined
from .solver import ON_CPU, on_device
from .svd import working_bytes

DEFAULT_MEMORY = 2 << 30


class Decomposition:
    """The factors of all adapted matrices, memory mapped.

    Made by `decompose` or opened by `Decomposition.open`.
    """

    def __init__(self, directory: Path, digest: str, matrices: Mapping[str, Matrix]) -> None:
        self.directory = directory
        self.digest = digest
        self.matrices = matrices

    @classmethod
    def open(cls, digest: str) -> "Decomposition":
        """Opens the cached decomposition of the weights with this digest (`Checkpoint.digest`).

        Raises ZweaveError if there is none, or its files are damaged.
        """
        directory = entry_directory(digest)
        if not directory.is_dir():
            raise ZweaveError(f"the model {digest[:12]} is not decomposed: run `zweave decompose MODEL`")
        try:
            matrices = read_index(directory, digest)
            for module, matrix in matrices.items():
                check_factors(factors_file(directory, module), matrix)
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
        with open_tensors(factors_file(self.directory, name)) as handle:
            return handle.get_tensor("u"), handle.get_tensor("sigma"), handle.get_tensor("vt")

    def sigma(self, name: str) -> Tensor:
        """Singular values [R], float32, descending."""
        with open_tensors(factors_file(self.directory, name)) as handle:
            return handle.get_tensor("sigma").clone()


def decompose(
    source: WeightSource,
    *,
    progress: Report | None = None,
    workers: int | None = None,
    memory: int | None = None,
    force: bool = False,
    device: str = "cpu",
) -> Decomposition:
    """Opens the model's decomposition from the cache, or makes it.

    A second process waits for the first. What a killed run had finished is checked and kept.

    progress: called with how many matrices are done; by default a bar on standard error shows it.
    workers: matrices at once, one core each; by default as many as PyTorch has threads. For the CPU alone.
    memory: bytes that the running decompositions may take together (`memory_bound`).
    force: make it anew even if it is in the cache.
    device: what computes the factors, "cpu" or "cuda", there one matrix at a time; the entry is the same, and a run
        begun on one goes on on the other.
    Raises ZweaveError if the device is unknown, a matrix is not finite, the memory is too little, or the disk is full
    or cannot be written.
    """
    place = parse_device(device)
    if place.type != "cpu" and workers is not None:
        raise ZweaveError(f"{device} decomposes one matrix at a time: workers are for device='cpu'")
    digest = source.digest()
    shapes = source.adapted_shapes()
    bound = memory_bound(shapes, memory)
    workers = torch.get_num_threads() if workers is None else workers
    if workers < 1:
        raise ZweaveError(f"at least 1 worker is needed, not {workers}")
    target = entry_directory(digest)
    if force or not target.is_dir():
        with nullcontext(progress) if progress else progress_bar() as report:
            waiting = partial(report, "waiting for another process that decomposes this model", 0, 0)
            with lock(target, waiting):
                if force or not target.is_dir():
                    _make(source, digest, workers, bound, report, place)
    found = Decomposition.open(digest)
    if {module: matrix.shape for module, matrix in found.matrices.items()} != shapes:
        raise ZweaveError("the decomposition is of other matrices: run `zweave decompose MODEL --force`")
    return found


def memory_bound(shapes: Mapping[str, tuple[int, int]], memory: int | None = None) -> int:
    """Bytes that `decompose` keeps to.

    memory: the bound; None for 2 GiB, or for what the largest matrix needs if that is more.
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


def _make(
    source: WeightSource, digest: str, workers: int, memory: int, report: Report, device: torch.device
) -> None:
    """Decomposes all matrices into a folder of its own, which becomes the cache's entry when it is whole."""
    shapes = source.adapted_shapes()
    target = entry_directory(digest)
    unfinished = target.with_name(f"{digest}.partial")
    _prepare(unfinished)
    missing = [shape for module, shape in shapes.items() if not factors_file(unfinished, module).is_file()]
    require_space(unfinished, sum(map(stored_bytes, missing)))
    if device.type == "cpu":
        stage = f"decomposing within {memory / (1 << 30):.1f} GiB"
        made = _on_cores(source, unfinished, workers, memory)
    else:
        stage = f"decomposing on {device}"
        made = pipelined(source, unfinished, on_device(device))
    matrices: dict[str, Matrix] = {}
    report(stage, 0, len(shapes))
    with closing(made):
        for module, matrix in made:
            matrices[module] = matrix
            report(stage, len(matrices), len(shapes))
    with disk_errors(unfinished):
        for module in shapes:
            flush(factors_file(unfinished, module))
        write_index(unfinished, digest, {module: matrices[module] for module in shapes})
        flush(unfinished)
        _publish(unfinished, target)
    if device.type == "cuda":
        # What PyTorch keeps of freed memory would be missing where a server asks what the device has left.
        torch.cuda.empty_cache()


def _on_cores(
    source: WeightSource, directory: Path, workers: int, memory: int
) -> Generator[tuple[str, Matrix]]:
    """Decomposes all matrices on the CPU, several at once."""

    def decomposed(module: str) -> tuple[str, Matrix]:
        return write(factor(read(source, module, directory), ON_CPU), directory)

    jobs = [
        Job(working_bytes(shape), partial(decomposed, module))
        for module, shape in source.adapted_shapes().items()
    ]
    yield from BoundedPool(jobs, workers, memory).run()


def _prepare(unfinished: Path) -> None:
    """Makes the folder of an unfinished decomposition, without what killed runs left half written."""
    with disk_errors(unfinished):
        for removed in unfinished.parent.glob(".*.removed"):
            shutil.rmtree(removed)
        unfinished.mkdir(parents=True, exist_ok=True)
        for stale in unfinished.glob(".*.tmp"):
            stale.unlink()


def _publish(unfinished: Path, target: Path) -> None:
    """Gives a whole folder its name; an old entry stays until the new one is whole."""
    old = target.with_name(f".{target.name}.removed") if target.is_dir() else None
    if old:
        target.rename(old)
    unfinished.rename(target)
    if old:
        shutil.rmtree(old)
    flush(target.parent)
