"""The file of a matrix's refit factors; scales of groups are float16, which holds them exactly."""

from pathlib import Path

import torch
from torch import Tensor

from zweave.kernels import Quantized

from ...errors import ZweaveError
from ...io.tensor_file import open_tensors, save_tensors
from .gptq import GROUP
from .refit import Refit


def save_refit(path: Path, refit: Refit, error: float) -> None:
    """Writes the factors, whole or not at all; the same factors give the same bytes."""
    tensors = {"scale": refit.scale}
    formats = {}
    for name, factor in (("u", refit.u), ("vt", refit.vt)):
        tensors |= {f"{name}.data": factor.data, f"{name}.scale": factor.scale.half()}
        formats[name] = f"{factor.format} {factor.shape[1]}"
    save_tensors(path, tensors, formats | {"error": repr(error)}, to_disk=False)


def load_refit(path: Path) -> Refit:
    """The factors; ZweaveError for a file that is damaged or of something else."""
    with open_tensors(path) as handle:
        metadata = handle.metadata() or {}
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
    try:
        u, vt = (_factor(tensors, name, metadata[name]) for name in ("u", "vt"))
        refit = Refit(u, tensors["scale"], vt)
        _check(refit)
    except (KeyError, ValueError):
        raise ZweaveError(f"{path}: does not hold the refit factors of a matrix") from None
    return refit


def error_of(path: Path) -> float:
    """The error that the factors were written with."""
    with open_tensors(path) as handle:
        return float(handle.metadata()["error"])


def _factor(tensors: dict[str, Tensor], name: str, described: str) -> Quantized:
    kind, columns = described.split()
    data, scale = tensors[f"{name}.data"], tensors[f"{name}.scale"].to(torch.float32)
    group = min(GROUP, max(int(columns), 1))
    return Quantized(data, scale, (data.shape[0], int(columns)), "int4" if kind == "int4" else "int8", group)


def _check(refit: Refit) -> None:
    """Raises ValueError unless the factors fit one another and all their numbers are finite."""
    rank, scales = refit.vt.shape[0], (refit.u.scale, refit.scale, refit.vt.scale)
    if refit.u.shape[1] != rank or refit.scale.shape != (rank,) or refit.scale.dtype != torch.float32:
        raise ValueError("factors of different ranks")
    if not all(scale.isfinite().all() for scale in scales):
        raise ValueError("scales that are not finite")
