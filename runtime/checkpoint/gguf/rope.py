"""Rotary position scaling from GGUF metadata to a Hugging Face config, in llama.cpp's meaning.

What llama.cpp computes for its architectures llama, qwen2 and qwen3 (`load_hparams`, `llama_context`,
`rope_yarn`): the type is linear unless the file says otherwise; `attn_factor` multiplies the usual factor of the
cosines and sines, where a Hugging Face config's `attention_factor` stands for it; the `yarn_*` keys are not read.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...errors import ZweaveError, shortened
from ...validation import is_positive
from ..rope_tables import llama3_frequencies, yarn_factor

# What divides the frequencies: Llama 3's, and longrope's for sequences up to the original length and beyond.
ROPE_FREQS, ROPE_SHORT, ROPE_LONG = (
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
)
ROPE_TENSORS = (ROPE_FREQS, ROPE_SHORT, ROPE_LONG)
_KINDS = ("none", "linear", "yarn", "longrope")
# Beside each the value that llama.cpp takes.
_UNREAD = {"yarn_ext_factor": 1, "yarn_attn_factor": 1, "yarn_beta_fast": 32, "yarn_beta_slow": 1}


def rope_fields(
    architecture: str, metadata: Mapping[str, Any], factors: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` in the older spelling of `config.json`, which all versions read.

    factors: those of ROPE_TENSORS that the file holds, [head_dim / 2] each.
    Raises ZweaveError for a scaling that zweave does not compute.
    """

    def get(key: str, default: float | None = None) -> Any:
        value = metadata.get(f"{architecture}.rope.{key}", default)
        if value is not None and not is_positive(value):
            raise ZweaveError(
                f"GGUF {architecture}.rope.{key} must be a positive number, not {shortened(value)}"
            )
        return value

    def get_unless_zero(key: str, default: float | None = None) -> Any:
        return default if metadata.get(f"{architecture}.rope.{key}") == 0 else get(key, default)

    kind = metadata.get(f"{architecture}.rope.scaling.type", "linear")
    if kind not in _KINDS:
        raise ZweaveError(
            f"GGUF rope scaling {shortened(kind)} is not supported: supported are {', '.join(_KINDS)}"
        )
    fields: dict[str, Any] = {"rope_theta": get("freq_base", 10000.0)}
    scale_key = "scaling.factor" if f"{architecture}.rope.scaling.factor" in metadata else "scale_linear"
    factor = 1.0 if kind == "none" else get_unless_zero(scale_key, 1.0)
    attention = get("scaling.attn_factor", 1.0)
    length = metadata.get(f"{architecture}.context_length")
    original = get_unless_zero("scaling.original_context_length", length)
    scaling: dict[str, Any] | None = None
    if ROPE_FREQS in factors:
        if factor != 1 or attention != 1:
            raise ZweaveError(f"GGUF {ROPE_FREQS} beside another rope scaling is not supported")
        scaling = llama3_scaling(factors[ROPE_FREQS], fields["rope_theta"])
    elif kind == "longrope" and ROPE_LONG in factors and ROPE_SHORT in factors and factor == 1:
        scaling = {
            "rope_type": "longrope",
            "attention_factor": attention,
            "original_max_position_embeddings": original,
            "short_factor": _decimals(factors[ROPE_SHORT]),
            "long_factor": _decimals(factors[ROPE_LONG]),
        }
    elif kind == "yarn" and factor != 1:
        _warn_of_unread(architecture, metadata)
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
        }
        if attention != 1:
            scaling["attention_factor"] = attention * yarn_factor(scaling)
    elif attention != 1 or (kind == "longrope" and (factors or factor != 1)):
        raise ZweaveError(
            f"GGUF rope scaling {kind} with factor {factor} and attn_factor {attention} is not supported"
        )
    elif factor != 1:
        scaling = {"rope_type": "linear", "factor": factor}
    return fields if scaling is None else fields | {"rope_scaling": scaling}


def llama3_scaling(factors: np.ndarray, theta: float) -> dict[str, Any]:
    """The `rope_scaling` of a Llama 3 model from what its GGUF file divides each frequency by.

    factors: [head_dim / 2], llama.cpp's `rope_freqs.weight`. Its converter has already applied Meta's
    parameters, of which only the overall factor ever differs; the others are confirmed by recomputing.
    Raises ZweaveError if they are none of Llama 3's.
    """
    scaling = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    frequencies = 1.0 / theta ** (torch.arange(len(factors), dtype=torch.float32) / len(factors))
    expected = frequencies / llama3_frequencies(frequencies, scaling)
    if not np.allclose(factors, expected.numpy(), rtol=1e-3):
        raise ZweaveError("the GGUF file's rope_freqs.weight is not Llama 3's: this scaling is not supported")
    return scaling


def _warn_of_unread(architecture: str, metadata: Mapping[str, Any]) -> None:
    for key, used in _UNREAD.items():
        name = f"{architecture}.rope.scaling.{key}"
        value = metadata.get(name, used)
        # llama.cpp takes a negative number for one that is not given.
        if value != used and not (key == "yarn_ext_factor" and value == -1):
            warnings.warn(
                f"GGUF {name} {shortened(value)} is ignored, as llama.cpp does: {used} is used", stacklevel=2
            )


def _decimals(values: np.ndarray) -> list[float]:
    """Shortest decimals of float32 numbers."""
    return [float(str(value)) for value in values.astype(np.float32)]
