"""Rotary position scaling from GGUF metadata to a Hugging Face config."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...errors import ZweaveError
from ..rope_tables import llama3_frequencies


def rope_fields(architecture: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` in the older spelling of `config.json`, which all versions read.

    Raises ZweaveError for a scaling that zweave does not compute.
    """

    def get(key: str) -> Any:
        return metadata.get(f"{architecture}.rope.{key}")

    fields: dict[str, Any] = {"rope_theta": get("freq_base") or 10000.0}
    factor = get("scaling.factor") or get("scale_linear")
    kind = get("scaling.type") or ("linear" if factor else "none")
    if kind == "none" or not factor or factor == 1.0:
        return fields
    if kind == "linear":
        return fields | {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind != "yarn":
        raise ZweaveError(f"GGUF rope scaling {kind!r} is not supported: supported are none, linear and yarn")
    scaling = {"rope_type": "yarn", "factor": factor}
    for key, name in (
        ("scaling.original_context_length", "original_max_position_embeddings"),
        ("scaling.yarn_beta_fast", "beta_fast"),
        ("scaling.yarn_beta_slow", "beta_slow"),
        ("scaling.yarn_attn_factor", "attention_factor"),
        ("scaling.attn_factor", "attention_factor"),
    ):
        if get(key):
            scaling[name] = get(key)
    return fields | {"rope_scaling": scaling}


def llama3_scaling(factors: np.ndarray, theta: object) -> dict[str, Any]:
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
    if isinstance(theta, float) and theta > 0:
        frequencies = 1.0 / theta ** (torch.arange(len(factors), dtype=torch.float32) / len(factors))
        expected = frequencies / llama3_frequencies(frequencies, scaling)
        if np.allclose(factors, expected.numpy(), rtol=1e-3):
            return scaling
    raise ZweaveError("the GGUF file's rope_freqs.weight is not Llama 3's: this scaling is not supported")
