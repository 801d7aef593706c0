"""What a Hugging Face `config.json` says, as transformers 4 or 5 writes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ZweaveError
from ..validation import is_integer, is_number

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# Of every size: a larger one is damage, and would only use up the memory.
LIMIT = 1 << 27
# What transformers takes for a key that the file leaves out, where the architectures differ.
_KV_HEADS = {"llama": None, "mistral": 8, "qwen2": 32, "qwen3": 32}
_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
_HEAD_DIM = {"llama": None, "mistral": None, "qwen2": None, "qwen3": 128}
_MAX_LAYERS = 1 << 12
_SCALING_KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_YARN_OPTIONS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def config_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ModelConfig from the content of a `config.json`.

    Raises ZweaveError if the model is not one that zweave can run, or a value is malformed.
    """
    kind = _architecture(raw)
    _refuse_unsupported(raw)
    layers = _size(raw, "num_hidden_layers", limit=_MAX_LAYERS)
    heads = _size(raw, "num_attention_heads")
    hidden = _size(raw, "hidden_size")
    positions = _size(raw, "max_position_embeddings", _POSITIONS[kind])
    theta, scaling = _rope(raw, positions)
    bias = kind == "qwen2" or (kind in ("llama", "qwen3") and _flag(raw, "attention_bias"))
    if raw.get("head_dim") is None and kind != "qwen3" and hidden % heads:
        raise ZweaveError(f"model config: hidden_size {hidden} cannot be divided among {heads} heads")
    default_kv_heads = heads if "num_key_value_heads" in raw else _KV_HEADS[kind] or heads
    return {
        "architecture": kind,
        "hidden_size": hidden,
        "intermediate_size": _size(raw, "intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": _size(raw, "num_key_value_heads", default_kv_heads),
        "head_dim": _size(raw, "head_dim", _HEAD_DIM[kind] or hidden // heads),
        "vocab_size": _size(raw, "vocab_size"),
        "rms_norm_eps": 1e-6 if raw.get("rms_norm_eps") is None else raw["rms_norm_eps"],
        "rope_theta": theta,
        "rope_scaling": scaling,
        "max_position": positions,
        "tie_embeddings": _flag(raw, "tie_word_embeddings"),
        "attention_bias": bias,
        "attention_out_bias": bias and kind != "qwen2",
        "mlp_bias": kind == "llama" and _flag(raw, "mlp_bias"),
        "qk_norm": kind == "qwen3",
        "sliding_window": _windows(raw, kind, layers),
        "dtype": str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
    }


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ZweaveError if it cannot be read or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ZweaveError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ZweaveError(f"{path} is not valid JSON: download the model again") from None
    if not isinstance(content, dict):
        raise ZweaveError(f"{path} does not hold a JSON object: download the model again")
    return content


def _architecture(raw: Mapping[str, Any]) -> str:
    kind = raw.get("model_type")
    classes = raw.get("architectures") or []
    supported = ", ".join(ARCHITECTURES.values())
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ZweaveError(f"model_type {kind!r} is not supported: supported are {supported}")
    if classes and ARCHITECTURES[kind] not in classes:
        raise ZweaveError(f"architecture {classes!r} is not supported: supported are {supported}")
    return kind


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    if raw.get("quantization_config"):
        raise ZweaveError(
            "the checkpoint is quantised, which is not supported: take the float one or a GGUF file"
        )
    activation = raw.get("hidden_act") or "silu"
    if activation not in ("silu", "swish"):
        raise ZweaveError(f"activation {activation!r} is not supported: only silu is")


def _windows(raw: Mapping[str, Any], kind: str, layers: int) -> tuple[int, ...]:
    """Each layer's attention window; transformers' rules for which layers have one."""
    if kind == "llama" or (kind != "mistral" and not _flag(raw, "use_sliding_window")):
        return (0,) * layers
    window = raw.get("sliding_window", 4096)
    # null means none; a key that is left out means transformers' default.
    if window is None:
        return (0,) * layers
    if not is_integer(window) or window < 1:
        raise ZweaveError(f"model config: sliding_window must be a positive integer or null, not {window!r}")
    if kind == "mistral":
        return (window,) * layers
    types = raw.get("layer_types")
    if types is None:
        first = 28 if raw.get("max_window_layers") is None else raw["max_window_layers"]
        if not is_integer(first):
            raise ZweaveError(f"model config: max_window_layers must be an integer, not {first!r}")
        return tuple(window if layer >= first else 0 for layer in range(layers))
    if (
        not isinstance(types, list)
        or len(types) != layers
        or any(name not in ("full_attention", "sliding_attention") for name in types)
    ):
        raise ZweaveError(
            "model config: layer_types must name full_attention or sliding_attention for each layer"
        )
    return tuple(window if name == "sliding_attention" else 0 for name in types)


def _rope(raw: Mapping[str, Any], positions: int) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of the rotary positions."""
    rope = _rope_parameters(raw)
    theta = rope.get("rope_theta") or raw.get("rope_theta") or 10000.0
    if not is_positive(theta):
        raise ZweaveError(f"model config: rope_theta must be a positive number, not {theta!r}")
    partial = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise ZweaveError(f"partial_rotary_factor {partial!r} is not supported: only 1 is")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind not in _SCALING_KEYS:
        raise ZweaveError(
            f"rope type {kind!r} is not supported: supported: default, {', '.join(_SCALING_KEYS)}"
        )
    scaling = _rope_scaling(kind, {"original_max_position_embeddings": positions, **rope})
    if kind == "yarn" and theta <= 1:
        raise ZweaveError(f"model config: yarn needs a rope_theta above 1, not {theta!r}")
    return theta, scaling if kind != "yarn" else scaling | _yarn_options(rope)


def _rope_parameters(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the config says of rotary positions.

    transformers 5 writes one dict `rope_parameters`, or one a layer type; transformers 4 wrote `rope_theta`
    and `rope_scaling`, whose type is called `type` in the oldest files.
    """
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ZweaveError(f"model config: rope_parameters must be an object, not {rope!r}")
    by_layer_type = [value for value in rope.values() if isinstance(value, dict)]
    if any(value != by_layer_type[0] for value in by_layer_type):
        raise ZweaveError("rotary positions that differ by layer type are not supported")
    return by_layer_type[0] if by_layer_type else rope


def _rope_scaling(kind: str, rope: Mapping[str, Any]) -> dict[str, Any]:
    """The type of scaling with the numbers that it needs."""
    scaling: dict[str, Any] = {"rope_type": kind}
    for key in _SCALING_KEYS[kind]:
        value = rope.get(key)
        if not is_positive(value):
            raise ZweaveError(f"model config: rope type {kind} needs a positive number {key}, not {value!r}")
        scaling[key] = value
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ZweaveError("model config: llama3's high_freq_factor must be above its low_freq_factor")
    return scaling


def _yarn_options(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that yarn may be given."""
    options = {key: rope[key] for key in _YARN_OPTIONS if rope.get(key)}
    for key, value in options.items():
        if not is_positive(value):
            raise ZweaveError(f"model config: yarn's {key} must be a positive number, not {value!r}")
    return options | {"truncate": bool(rope.get("truncate", True))}


def _size(raw: Mapping[str, Any], key: str, default: int | None = None, limit: int = LIMIT) -> int:
    value = default if raw.get(key) is None else raw[key]
    if not is_integer(value) or not 0 < value < limit:
        raise ZweaveError(f"model config: {key} must be a positive integer below {limit}, not {value!r}")
    return value


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise ZweaveError(f"model config: {key} must be true or false, not {value!r}")
    return bool(value)


def is_positive(value: object) -> bool:
    """Whether a value is a number above 0 that a float holds."""
    return is_number(value) and value > 0
