"""The tensors of a checkpoint as a model without quantisation has them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import ZweaveError, shortened
from ..hf_config import read_json
from ..tensor_files import ModelTensor, StoredTensor, first_names
from . import awq, compressed, fp8, gptq
from .matrix import QuantizedFiles, QuantizedMatrix

Reader = Callable[[Mapping[str, Any], QuantizedFiles], dict[str, QuantizedMatrix]]

# By quant_method: who reads the matrices, and which tensors are used up by that.
_METHODS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    "awq": (awq.awq_matrices, awq.PARTS),
    "gptq": (gptq.gptq_matrices, gptq.PARTS),
    "fp8": (fp8.fp8_matrices, fp8.SCALES + fp8.UNUSED),
    "compressed-tensors": (compressed.compressed_matrices, compressed.PARTS + fp8.SCALES + fp8.UNUSED),
}


def dequantized(directory: Path, stored: Mapping[str, StoredTensor]) -> dict[str, ModelTensor]:
    """Name to tensor; matrices that the files hold quantised stand under the names that they had before.

    They are dequantised whenever they are read: computed in float32, rounded to the dtype that the config names,
    float32 without one.
    Raises ZweaveError for a quant_method that is not supported, and for parts that are missing or do not fit.
    """
    raw = read_json(directory / "config.json")
    config = raw.get("quantization_config") or raw.get("compression_config")
    if not config:
        _refuse_unexplained(directory, stored)
        return dict(stored)
    method = config.get("quant_method") if isinstance(config, dict) else None
    if not isinstance(method, str) or method not in _METHODS:
        raise ZweaveError(
            f"quantization_config: quant_method {shortened(method)} is not supported, only {', '.join(_METHODS)} "
            "are: take one of these, the float checkpoint or a GGUF file"
        )
    read, parts = _METHODS[method]
    matrices = read(config, QuantizedFiles(directory, stored, _dtype(raw)))
    used = tuple(f".{part}" for part in parts)
    return {name: tensor for name, tensor in stored.items() if not name.endswith(used)} | dict(matrices)


def _refuse_unexplained(directory: Path, stored: Mapping[str, StoredTensor]) -> None:
    packed = [name for name in stored if name.endswith(".qweight")]
    if packed:
        raise ZweaveError(
            f"{directory} holds quantised tensors ({first_names(packed, 1)}), but its config.json has no "
            "quantization_config: copy it there from the file quantize_config.json or quant_config.json"
        )


def _dtype(raw: Mapping[str, Any]) -> torch.dtype:
    name = raw.get("dtype") or raw.get("torch_dtype")
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes.get(name, torch.float32) if isinstance(name, str) else torch.float32
