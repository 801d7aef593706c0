"""The file of a matrix's refit factors; scales of groups are bfloat16, which holds them exactly."""

from pathlib import Path

import torch
from torch import Tensor

from zweave.kernels import Quantized

from ..decomposition.refit.gptq import GROUP
from ..decomposition.refit.refit import Refit
from ..io.tensor_file import open_tensors, save_tensors


def save_refit(path: Path, refit: Refit, error: float) -> None:
    """Writes the factors, whole or not at all; the same factors give the same bytes."""
    tensors = {"scale": refit.scale}
    formats = {}
    for name, factor in (("u", refit.u), ("vt", refit.vt)):
        tensors |= {f"{name}.data": factor.data, f"{name}.scale": factor.scale.bfloat16()}
        formats[name] = f"{factor.format} {factor.shape[1]}"
    save_tensors(path, tensors, formats | {"error": repr(error)}, to_disk=False)


def load_refit(path: Path) -> Refit:
    """The factors; ZweaveError for a damaged file."""
    with open_tensors(path) as handle:
        metadata = handle.metadata()
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
    return Refit(
        _factor(tensors, "u", metadata["u"]), tensors["scale"], _factor(tensors, "vt", metadata["vt"])
    )


def error_of(path: Path) -> float:
    """The error that the factors were written with."""
    with open_tensors(path) as handle:
        return float(handle.metadata()["error"])


def _factor(tensors: dict[str, Tensor], name: str, described: str) -> Quantized:
    kind, columns = described.split()
    data, scale = tensors[f"{name}.data"], tensors[f"{name}.scale"].to(torch.float32)
    group = min(GROUP, max(int(columns), 1))
    return Quantized(data, scale, (data.shape[0], int(columns)), "int4" if kind == "int4" else "int8", group)
