"""A checkpoint and LoRA adapters as the GGUF files that llama.cpp reads: Llama models, in float32 or bfloat16."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zweave.adapters.peft_directory import read_peft
from zweave.checkpoint import Checkpoint, ModelConfig
from zweave.checkpoint.gguf.reader import GgufFile
from zweave.errors import ZweaveError

from ..reference_model import load_transformers


def write_gguf(checkpoint: Checkpoint, path: Path, dtype: str) -> Path:
    """The file of a model; ZweaveError for one that is no Llama."""
    config = checkpoint.config
    if config.architecture != "llama":
        raise ZweaveError(f"llama.cpp is asked for Llama models alone, and this is {config.architecture}")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    # The bench gives and takes token ids.
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in load_transformers(checkpoint.directory, torch.float32).state_dict().items():
        if name == "lm_head.weight" and config.tie_embeddings:
            continue
        values = _rows(name, tensor, config)
        if dtype == "bfloat16" and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(_name(name, config), gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_name(name, config), values)
    return _written(writer, path)


def write_gguf_lora(directory: Path, path: Path, config: ModelConfig) -> Path:
    """The file of an adapter in a directory of PEFT's, all of whose matrices have one scaling."""
    lora = read_peft(directory)
    scaling, rank = next((pair.scaling, pair.rank) for pair in lora.pairs.values())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, scaling * rank)
    for module, pair in lora.pairs.items():
        name = _name(f"{module}.weight", config)
        writer.add_tensor(f"{name}.lora_a", _rows("", pair.a, config))
        writer.add_tensor(f"{name}.lora_b", _rows(module, pair.b, config))
    return _written(writer, path)


def read_matrices(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """All matrices that a file stands for, dequantised, by the names of their modules."""
    file, matrices = GgufFile(path), {}
    shapes = dict(config.adapted_shapes())
    for module in ("model.embed_tokens",) if config.tie_embeddings else ("model.embed_tokens", "lm_head"):
        shapes[module] = (config.vocab_size, config.hidden_size)
    for module, shape in shapes.items():
        values = np.concatenate(list(file.float_chunks(_name(f"{module}.weight", config)))).reshape(shape)
        heads = _rotated_heads(module, config)
        if heads:
            pairs = values.reshape(heads, config.head_dim // 2, 2, -1)
            values = pairs.swapaxes(1, 2).reshape(shape)
        matrices[module] = torch.tensor(values)
    return matrices


@lru_cache(maxsize=1)
def _names(layers: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)


def _name(name: str, config: ModelConfig) -> str:
    found = _names(config.num_layers).get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ZweaveError(f"llama.cpp has no name for {name}")
    return str(found)


def _rows(name: str, tensor: Tensor, config: ModelConfig) -> NDArray[Any]:
    """The values in float32; llama.cpp rotates neighbouring rows of queries and keys, others the halves of a head."""
    values = tensor.detach().float().numpy()
    heads = _rotated_heads(name, config)
    if heads:
        halves = values.reshape(heads, 2, config.head_dim // 2, *values.shape[1:])
        values = halves.swapaxes(1, 2).reshape(values.shape)
    return np.ascontiguousarray(values)


def _rotated_heads(name: str, config: ModelConfig) -> int:
    """Heads whose rows llama.cpp orders otherwise; 0 for none."""
    return config.num_heads if "q_proj" in name else config.num_kv_heads if "k_proj" in name else 0


def _written(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
