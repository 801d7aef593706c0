"""What a Hugging Face config says of rotary positions: their base, their scaling, and how far they reach.

Which key counts and what a key that is left out means are transformers' rules; the reach is vLLM's.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ZweaveError, shortened
from ..validation import is_positive

# Of all sizes: a larger one is damage, and would only use up the memory.
LIMIT = 1 << 27
_NUMBERS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("factor", "original_max_position_embeddings"),
}
_OPTIONS = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "longrope": ("attention_factor",),
}
_LISTS = {"longrope": ("short_factor", "long_factor")}
_FORMER_NAMES = {"su": "longrope"}
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
_KEYS = _COMMON.union(*_NUMBERS.values(), *_OPTIONS.values(), *_LISTS.values(), ["truncate"])
# For these 0 means, as in transformers, that the number is not given.
_ZERO_IS_DEFAULT = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
# Beyond them a number is damage, and the tables would overflow.
_LEAST, _MOST = 1e-9, 1e12


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary positions of a model.

    scaling: None, or {"rope_type": ..., ...} with all numbers that this type takes.
    max_position: positions that they reach.
    """

    theta: float
    scaling: dict[str, Any] | None
    max_position: int


def read_rope(raw: Mapping[str, Any], positions: int, head_dim: int) -> RopeConfig:
    """Reads them from the content of a `config.json`; ZweaveError for what cannot be computed.

    positions: max_position_embeddings.
    """
    rope = _rope_parameters(raw)
    theta = _first(rope.get("rope_theta"), raw.get("rope_theta"), 10000.0)
    if not _is_sane(theta):
        raise ZweaveError(f"model config: rope_theta must be a positive number, not {shortened(theta)}")
    partial = _first(rope.get("partial_rotary_factor"), raw.get("partial_rotary_factor"), 1.0)
    if partial != 1.0:
        raise ZweaveError(f"partial_rotary_factor {shortened(partial)} is not supported: only 1 is")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = _FORMER_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if kind != "default" and (not isinstance(kind, str) or kind not in _NUMBERS):
        raise ZweaveError(
            f"rope type {shortened(kind)} is not supported: supported: default, {', '.join(_NUMBERS)}"
        )
    config = RopeConfig(theta, None, positions)
    if kind != "default":
        scaling = _scaling(kind, rope, raw, positions, head_dim)
        _check_fit(scaling, theta, head_dim)
        config = RopeConfig(theta, scaling, _reach(scaling, positions))
    _warn_of_unused(kind, rope)
    return config


def _rope_parameters(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the config says of rotary positions.

    transformers 5 writes one dict `rope_parameters`, or one a layer type; transformers 4 wrote `rope_theta`
    and `rope_scaling`, whose type is called `type` in the oldest files.
    """
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(key) or {}
    if not isinstance(rope, dict):
        raise ZweaveError(f"model config: {key} must be an object, not {shortened(rope)}")
    by_layer_type = [value for key, value in rope.items() if isinstance(value, dict) and key not in _KEYS]
    if any(value != by_layer_type[0] for value in by_layer_type):
        raise ZweaveError("rotary positions that differ by layer type are not supported")
    return by_layer_type[0] if by_layer_type else rope


def _warn_of_unused(kind: str, rope: Mapping[str, Any]) -> None:
    used = {*_COMMON, *_NUMBERS.get(kind, ()), *_OPTIONS.get(kind, ()), *_LISTS.get(kind, ())}
    unused = sorted(rope.keys() - (used | {"truncate"} if kind == "yarn" else used))
    if unused:
        warnings.warn(
            f"model config: rope type {kind} takes no {shortened(unused, 100)}: ignored", stacklevel=2
        )


def _scaling(
    kind: str, rope: Mapping[str, Any], raw: Mapping[str, Any], positions: int, head_dim: int
) -> dict[str, Any]:
    """The type of scaling with the numbers that it takes."""
    if kind == "dynamic":
        given = {**rope, "original_max_position_embeddings": positions}
    else:
        # At the top level it wins, as Phi-3 writes it.
        original = _first(
            raw.get("original_max_position_embeddings"),
            rope.get("original_max_position_embeddings"),
            positions,
        )
        given = {**rope, "original_max_position_embeddings": original}
    if kind in ("yarn", "longrope") and rope.get("factor") is None:
        given["factor"] = positions / original if _is_sane(original) else None
    scaling: dict[str, Any] = {"rope_type": kind}
    for key in _NUMBERS[kind] + (("original_max_position_embeddings",) if kind == "dynamic" else ()):
        if not _is_sane(given.get(key)):
            raise ZweaveError(
                f"model config: rope type {kind} needs a positive number {key}, not {shortened(given.get(key))}"
            )
        scaling[key] = given[key]
    for key in _OPTIONS.get(kind, ()):
        value = rope.get(key)
        if value is None or (value == 0 and key in _ZERO_IS_DEFAULT):
            continue
        if not _is_sane(value):
            raise ZweaveError(
                f"model config: {kind}'s {key} must be a positive number, not {shortened(value)}"
            )
        scaling[key] = value
    for key in _LISTS.get(kind, ()):
        scaling[key] = _factors(kind, key, rope.get(key), head_dim // 2)
    return scaling if kind != "yarn" else scaling | {"truncate": bool(rope.get("truncate", True))}


def _factors(kind: str, key: str, value: object, count: int) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != count or not all(map(_is_sane, value)):
        raise ZweaveError(
            f"model config: rope type {kind} needs {key}, a list of {count} positive numbers, one a frequency"
        )
    return tuple(value)


def _check_fit(scaling: Mapping[str, Any], theta: float, head_dim: int) -> None:
    """ZweaveError for numbers whose formula divides by zero."""
    kind = scaling["rope_type"]
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ZweaveError("model config: llama3's high_freq_factor must be above its low_freq_factor")
    if kind == "yarn" and theta <= 1:
        raise ZweaveError(f"model config: yarn needs a rope_theta above 1, not {theta}")
    if kind == "dynamic" and head_dim <= 2:
        raise ZweaveError(f"model config: dynamic needs a head_dim above 2, not {head_dim}")
    if kind == "longrope" and scaling["original_max_position_embeddings"] <= 1:
        raise ZweaveError("model config: longrope's original_max_position_embeddings must be above 1")


def _reach(scaling: Mapping[str, Any], positions: int) -> int:
    """Positions that scaled rotary positions reach.

    The config's own number counts for llama3 and longrope alone: Qwen's recipe for yarn leaves it unchanged.
    """
    kind = scaling["rope_type"]
    if kind in ("llama3", "longrope"):
        return positions
    start = scaling["original_max_position_embeddings"] if kind == "yarn" else positions
    return min(max(1, int(start * scaling["factor"])), LIMIT - 1)


def _first(*values: Any) -> Any:
    """The first value that is given."""
    return next(value for value in values if value is not None)


def _is_sane(value: object) -> bool:
    return is_positive(value) and _LEAST <= value <= _MOST
