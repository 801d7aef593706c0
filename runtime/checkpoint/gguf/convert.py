"""Turns a GGUF file into a Hugging Face directory with float32 weights.

Names and metadata keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's converter.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import ZweaveError
from ...io.atomic_write import atomic_directory
from ...io.cache_dir import cache_dir, disk_errors, lock, require_space
from ...io.progress import Report, progress_bar, silent
from ..hf_config import ARCHITECTURES
from ..model_config import ModelConfig
from ..module_name import LINEARS, module_name
from .reader import GgufFile
from .rope import llama3_scaling, rope_fields
from .tokenizer import GgufTokenizer

_SUPPORTED = ("llama", "qwen2", "qwen3")
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_NORMS = {
    "attn_norm": "input_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
}
_GGUF_LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_LINEARS = dict(zip(_GGUF_LINEARS, LINEARS, strict=True))
_LAYER_TENSOR = re.compile(r"blk\.([0-9]{1,4})\.([a-z_]+)\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"


def convert_cached(path: Path) -> Path:
    """The directory with the converted GGUF file; converts it into the cache on first use.

    The entry's name is the SHA-256 of the file. Raises ZweaveError as `convert` does.
    """
    target = cache_dir() / "models" / f"gguf-{file_digest(path)}"
    if target.is_dir():
        return target
    with lock(target), progress_bar() as report:
        if not target.is_dir():
            with atomic_directory(target) as directory:
                convert(path, directory, report)
    return target


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 22):
                digest.update(chunk)
            return digest.hexdigest()
    except OSError as error:
        raise ZweaveError(f"cannot read {path}: {error.strerror}") from None


def convert(path: Path, directory: Path, report: Report = silent) -> None:
    """Writes config, float32 weights, tokenizer and chat template of a GGUF file into an empty directory.

    The same file gives the same bytes. Raises ZweaveError for a damaged file, an unsupported architecture,
    tokenizer or tensor type, and a full disk.
    """
    gguf = GgufFile(path)
    tokenizer = GgufTokenizer(gguf.metadata)
    raw = _config(gguf) | tokenizer.token_ids()
    with disk_errors(directory):
        _write_json(directory / "config.json", raw)
        config = ModelConfig.from_directory(directory)
        if tokenizer.vocab_size > config.vocab_size:
            raise ZweaveError(
                f"{path}: {tokenizer.vocab_size} tokens, {config.vocab_size} embeddings; the file is damaged"
            )
        sources = _sources(gguf, config)
        size = sum(math.prod(shape) * 4 for shape in config.tensor_shapes().values())
        require_space(directory, size + (1 << 24))
        _write_json(directory / "generation_config.json", tokenizer.token_ids())
        _write_json(directory / "tokenizer_config.json", tokenizer.config())
        (directory / "tokenizer.json").write_text(tokenizer.build().to_str(), encoding="utf-8")
        with (directory / "model.safetensors").open("wb") as file:
            _write_tensors(file, gguf, config, sources, report)


def _config(gguf: GgufFile) -> dict[str, Any]:
    """The content of `config.json`, except for the special tokens."""
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
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_output.bias" in names,
        "mlp_bias": "blk.0.ffn_down.bias" in names,
    }
    if window:
        raw |= {"sliding_window": window, "use_sliding_window": model_type != "mistral"}
    head_dim = _head_dim(architecture, metadata)
    if head_dim is not None:
        raw["head_dim"] = head_dim
    raw |= rope_fields(architecture, metadata)
    if _ROPE_FACTORS in names:
        factors = np.concatenate(list(gguf.float_chunks(_ROPE_FACTORS)), axis=None)
        raw["rope_scaling"] = llama3_scaling(factors, raw["rope_theta"])
    return raw


def _supported_architecture(metadata: Mapping[str, Any]) -> str:
    """The architecture; ZweaveError for one that zweave does not run, a split file or a mixture-of-experts model."""
    architecture = metadata.get("general.architecture")
    if architecture not in _SUPPORTED:
        raise ZweaveError(
            f"GGUF architecture {architecture!r} is not supported: supported are {', '.join(_SUPPORTED)}"
        )
    if metadata.get("split.count") not in (None, 0, 1):
        raise ZweaveError("the GGUF model is split into several files: join them with llama.cpp's gguf-split")
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
            raise ZweaveError(f"GGUF {architecture}.{key} {size!r} differs from the head size, not supported")
    return head_dim


def _sources(gguf: GgufFile, config: ModelConfig) -> dict[str, str]:
    """Hugging Face name to GGUF name of every tensor of the model, each checked for its shape."""
    found = {_hugging_face_name(name): name for name in gguf.tensors if name != _ROPE_FACTORS}
    shapes = config.tensor_shapes()
    for name, shape in shapes.items():
        if name not in found:
            raise ZweaveError(f"{gguf.path} lacks the tensor for {name}; download it again")
        if gguf.tensors[found[name]].shape != shape:
            raise ZweaveError(
                f"{gguf.path}: {found[name]} has shape {gguf.tensors[found[name]].shape}, {shape} is expected"
            )
    unknown = sorted(found[name] for name in found.keys() - shapes.keys())
    if unknown:
        raise ZweaveError(
            f"{gguf.path}: a {config.architecture} model has no tensor {unknown[0]!r}; not supported"
        )
    return {name: found[name] for name in shapes}


def _hugging_face_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None or not (match[2] in _NORMS or match[2] in _LINEARS):
        raise ZweaveError(f"the GGUF tensor {name!r} is not known to zweave: the model is not supported")
    layer, part, kind = int(match[1]), match[2], match[3]
    if part in _LINEARS:
        return f"{module_name(layer, _LINEARS[part])}.{kind}"
    return f"model.layers.{layer}.{_NORMS[part]}.{kind}"


def _write_tensors(
    file: BinaryIO, gguf: GgufFile, config: ModelConfig, sources: dict[str, str], report: Report
) -> None:
    """Writes a safetensors file tensor by tensor, so that memory holds one at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, source in sources.items():
        size = math.prod(gguf.tensors[source].shape) * 4
        header[name] = {
            "dtype": "F32",
            "shape": gguf.tensors[source].shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    file.write(len(text).to_bytes(8, "little") + text)
    for done, (name, source) in enumerate(sources.items()):
        report("dequantising", done, len(sources))
        for values in _chunks(gguf, config, name, source):
            file.write(np.ascontiguousarray(values, dtype="<f4").data)
    report("dequantising", len(sources), len(sources))


def _chunks(gguf: GgufFile, config: ModelConfig, name: str, source: str) -> Iterator[np.ndarray]:
    rotated = config.architecture in ("llama", "mistral") and ".self_attn." in name
    if rotated and ".q_proj." in name:
        heads = config.num_heads
    elif rotated and ".k_proj." in name:
        heads = config.num_kv_heads
    else:
        yield from gguf.float_chunks(source)
        return
    values = np.concatenate(list(gguf.float_chunks(source))).reshape(gguf.tensors[source].shape)
    # llama.cpp rotates neighbouring rows and has interleaved the halves for that; undo it.
    yield values.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)


def _shortest(value: Any) -> Any:
    """The shortest decimal of a float32, so that 1e-5 does not read 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
