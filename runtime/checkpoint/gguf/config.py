"""The `config.json` of a GGUF model, from its metadata and the tensors that it has.

Metadata keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's converter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ZweaveError, shortened
from ..hf_config import ARCHITECTURES
from .rope import ROPE_TENSORS, rope_fields
from .split import GgufModel

_SUPPORTED = ("llama", "qwen2", "qwen3")


def gguf_config(gguf: GgufModel) -> dict[str, Any]:
    """The content of `config.json`, except for the special tokens.

    Raises ZweaveError for an architecture that zweave does not run, a mixture-of-experts model, and a scaling of
    the rotary positions that zweave does not compute.
    """
    metadata, names = gguf.metadata, gguf.tensors
    architecture = _supported_architecture(metadata)

    def get(key: str) -> Any:
        return metadata.get(f"{architecture}.{key}")

    # llama.cpp writes Mistral as llama; the window is what tells them apart.
    window = get("attention.sliding_window")
    model_type = "mistral" if architecture == "llama" and window else architecture
    embedding = names.get("token_embd.weight")
    heads = get("attention.head_count")
    kv_heads = get("attention.head_count_kv")
    raw = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "torch_dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads if kv_heads is None else kv_heads,
        "vocab_size": embedding.shape[0] if embedding else None,
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon")),
        # As in llama.cpp, no key tells: a head that is stored is used.
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_output.bias" in names,
        "mlp_bias": "blk.0.ffn_down.bias" in names,
    }
    if window:
        raw |= {"sliding_window": window, "use_sliding_window": model_type != "mistral"}
    head_dim = _head_dim(architecture, metadata)
    if head_dim is not None:
        raw["head_dim"] = head_dim
    factors = {name: _vector(gguf, name) for name in ROPE_TENSORS if name in names}
    return raw | rope_fields(architecture, metadata, factors)


def _supported_architecture(metadata: Mapping[str, Any]) -> str:
    architecture = metadata.get("general.architecture")
    if architecture not in _SUPPORTED:
        raise ZweaveError(
            f"GGUF architecture {shortened(architecture)} is not supported: supported are {', '.join(_SUPPORTED)}"
        )
    if metadata.get(f"{architecture}.expert_count"):
        raise ZweaveError("mixture-of-experts models are not supported")
    return architecture


def _head_dim(architecture: str, metadata: Mapping[str, Any]) -> Any:
    """The size of an attention head, None if the file does not say; ZweaveError unless all sizes are this one."""
    rotary = metadata.get(f"{architecture}.rope.dimension_count")
    head_dim = metadata.get(f"{architecture}.attention.key_length") or rotary
    for key in ("attention.value_length", "rope.dimension_count"):
        size = metadata.get(f"{architecture}.{key}")
        if size not in (None, head_dim):
            raise ZweaveError(
                f"GGUF {architecture}.{key} {shortened(size)} differs from the head size, not supported"
            )
    return head_dim


def _vector(gguf: GgufModel, name: str) -> np.ndarray:
    return np.concatenate(list(gguf.float_chunks(name)), axis=None)


def _shortest(value: Any) -> Any:
    """The shortest decimal of a float32, so that 1e-5 does not read 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
