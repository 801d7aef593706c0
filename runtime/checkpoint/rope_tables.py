"""Rotary position tables with the scalings of long-context models.

default: Su et al. 2021 (arXiv 2104.09864). linear: positions divided by a factor. dynamic: a larger base, by
bloc97 and emozilla. llama3: as Llama 3.1 scales its low frequencies. yarn: Peng et al. 2023 (arXiv 2309.00071).
longrope: Ding et al. 2024 (arXiv 2402.13753). The numbers are those of transformers.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ZweaveError
from .model_config import ModelConfig


def rope_tables(config: ModelConfig, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 to `positions` - 1, [positions, head_dim / 2] float32 each.

    They hold a frequency once, for the rotation of halves; the attention factor of yarn and longrope is folded
    in. Where frequencies follow from the length of a sequence (dynamic, longrope), they are those of a sequence
    of `positions` tokens.
    """
    frequencies, factor = _frequencies(config, positions)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    return angles.cos() * factor, angles.sin() * factor


def _frequencies(config: ModelConfig, positions: int) -> tuple[Tensor, float]:
    """Radians a position, [head_dim / 2] float32, and the factor of the tables."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies, 1.0
    match scaling["rope_type"]:
        case "linear":
            return frequencies / scaling["factor"], 1.0
        case "dynamic":
            return 1.0 / _dynamic_theta(scaling, config, positions) ** exponents, 1.0
        case "llama3":
            return llama3_frequencies(frequencies, scaling), 1.0
        case "longrope":
            long = positions > scaling["original_max_position_embeddings"]
            divisors = torch.tensor(scaling["long_factor" if long else "short_factor"], dtype=torch.float32)
            return 1.0 / (divisors * config.rope_theta**exponents), _longrope_factor(scaling)
        case "yarn":
            return _yarn(frequencies, scaling, config), yarn_factor(scaling)
        case kind:
            raise ZweaveError(f"rope type {kind!r} is not supported")


def _dynamic_theta(scaling: Mapping[str, Any], config: ModelConfig, positions: int) -> float:
    """The base, larger by what a sequence exceeds the original context (NTK-aware)."""
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    stretch = factor * max(positions, original) / original - (factor - 1)
    return config.rope_theta * stretch ** (config.head_dim / (config.head_dim - 2))


def llama3_frequencies(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Divides long wavelengths by the factor, keeps short ones, and blends in between."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    blend = (context / wavelengths - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    scaled = torch.where(wavelengths > context / low, frequencies / factor, blended)
    return torch.where(wavelengths < context / high, frequencies, scaled)


def _yarn(frequencies: Tensor, scaling: Mapping[str, Any], config: ModelConfig) -> Tensor:
    """Keeps dimensions that turn often within the original context, divides those that turn seldom."""
    size = config.head_dim
    context = scaling["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        return size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.get("beta_fast", 32)), dimension(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequencies / scaling["factor"] * ramp + frequencies * (1 - ramp)


def yarn_factor(scaling: Mapping[str, Any]) -> float:
    """What yarn multiplies cosines and sines by, to keep the attention as sharp as it was."""
    if "attention_factor" in scaling:
        return scaling["attention_factor"]

    def mscale(weight: float) -> float:
        return 1.0 if scaling["factor"] <= 1 else 0.1 * weight * math.log(scaling["factor"]) + 1.0

    if "mscale" in scaling and "mscale_all_dim" in scaling:
        return mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
    return mscale(1.0)


def _longrope_factor(scaling: Mapping[str, Any]) -> float:
    """What longrope multiplies cosines and sines by."""
    if "attention_factor" in scaling:
        return scaling["attention_factor"]
    if scaling["factor"] <= 1:
        return 1.0
    original = scaling["original_max_position_embeddings"]
    return math.sqrt(1 + math.log(scaling["factor"]) / math.log(original))
