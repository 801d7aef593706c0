"""What a Hugging Face `config.json` says, as transformers 4 or 5 writes it."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ZweaveError, one_line, shortened
from ..io.json_text import parse_json
from ..validation import is_integer
from .rope_config import LIMIT, read_rope

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What transformers takes for a key that the file leaves out, where the architectures differ.
_KV_HEADS = {"llama": None, "mistral": 8, "qwen2": 32, "qwen3": 32}
_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
_HEAD_DIM = {"llama": None, "mistral": None, "qwen2": None, "qwen3": 128}
_MAX_LAYERS = 1 << 12


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
    bias = kind == "qwen2" or (kind in ("llama", "qwen3") and _flag(raw, "attention_bias"))
    if raw.get("head_dim") is None and kind != "qwen3" and hidden % heads:
        raise ZweaveError(f"model config: hidden_size {hidden} cannot be divided among {heads} heads")
    head_dim = _size(raw, "head_dim", _HEAD_DIM[kind] or hidden // heads)
    rope = read_rope(raw, positions, head_dim)
    default_kv_heads = heads if "num_key_value_heads" in raw else _KV_HEADS[kind] or heads
    return {
        "architecture": kind,
        "hidden_size": hidden,
        "intermediate_size": _size(raw, "intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": _size(raw, "num_key_value_heads", default_kv_heads),
        "head_dim": head_dim,
        "vocab_size": _size(raw, "vocab_size"),
        "rms_norm_eps": 1e-6 if raw.get("rms_norm_eps") is None else raw["rms_norm_eps"],
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
        "max_position": rope.max_position,
        "tie_embeddings": _flag(raw, "tie_word_embeddings"),
        "attention_bias": bias,
        "attention_out_bias": bias and kind != "qwen2",
        "mlp_bias": kind == "llama" and _flag(raw, "mlp_bias"),
        "qk_norm": kind == "qwen3",
        "sliding_window": _windows(raw, kind, layers),
    }


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ZweaveError if it cannot be read or holds something else."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"), unique_keys=False)
    except OSError as error:
        raise ZweaveError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ZweaveError(f"{path} is not valid JSON ({one_line(error)}): download the model again") from None
    if not isinstance(content, dict):
        raise ZweaveError(f"{path} does not hold a JSON object: download the model again")
    return content


def _architecture(raw: Mapping[str, Any]) -> str:
    """The model type, which alone decides, as in transformers' auto classes.

    What `architectures` names differs from it in checkpoints without a head, with another one, or of a class
    that was renamed.
    """
    kind = raw.get("model_type")
    classes = raw.get("architectures") or []
    supported = ", ".join(ARCHITECTURES.values())
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ZweaveError(f"model_type {shortened(kind)} is not supported: supported are {supported}")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ZweaveError(f"model config: architectures must be a list of names, not {shortened(classes)}")
    if classes and ARCHITECTURES[kind] not in classes:
        warnings.warn(
            f"architectures {shortened(classes, 80)}: read as {ARCHITECTURES[kind]}, which its model_type means",
            stacklevel=2,
        )
    return kind


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    activation = raw.get("hidden_act") or "silu"
    if activation not in ("silu", "swish"):
        raise ZweaveError(f"activation {shortened(activation)} is not supported: only silu is")


def _windows(raw: Mapping[str, Any], kind: str, layers: int) -> tuple[int, ...]:
    """Each layer's attention window; transformers' rules for which layers have one."""
    if kind == "llama" or (kind != "mistral" and not _flag(raw, "use_sliding_window")):
        return (0,) * layers
    window = raw.get("sliding_window", 4096)
    # null means none; a key that is left out means transformers' default.
    if window is None:
        return (0,) * layers
    if not is_integer(window) or window < 1:
        raise ZweaveError(
            f"model config: sliding_window must be a positive integer or null, not {shortened(window)}"
        )
    if kind == "mistral":
        return (window,) * layers
    types = raw.get("layer_types")
    if types is None:
        first = 28 if raw.get("max_window_layers") is None else raw["max_window_layers"]
        if not is_integer(first):
            raise ZweaveError(f"model config: max_window_layers must be an integer, not {shortened(first)}")
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


def _size(raw: Mapping[str, Any], key: str, default: int | None = None, limit: int = LIMIT) -> int:
    value = default if raw.get(key) is None else raw[key]
    if not is_integer(value) or not 0 < value < limit:
        raise ZweaveError(
            f"model config: {key} must be a positive integer below {limit}, not {shortened(value)}"
        )
    return value


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise ZweaveError(f"model config: {key} must be true or false, not {shortened(value)}")
    return bool(value)
