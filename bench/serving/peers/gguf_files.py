"""A checkpoint and LoRA adapters as the GGUF files that llama.cpp reads: Llama models, in float32 or bfloat16."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zweave.adapters.peft_directory import read_peft
from zweave.checkpoint import Checkpoint, ModelConfig
from zweave.errors import ZweaveError

from ..reference_model import load_transformers

_NORMAL, _CONTROL, _UNUSED = 1, 3, 5


def write_gguf(checkpoint: Checkpoint, path: Path, dtype: str) -> Path:
    """The file of a model; ZweaveError for one that is no Llama with a vocabulary of byte pairs."""
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
    _add_vocabulary(writer, checkpoint.directory, config.vocab_size)
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


def _name(name: str, config: ModelConfig) -> str:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ZweaveError(f"llama.cpp has no name for {name}")
    return str(found)


def _rows(name: str, tensor: Tensor, config: ModelConfig) -> NDArray[Any]:
    """The values in float32; llama.cpp rotates neighbouring rows of queries and keys, others the halves of a head."""
    values = tensor.detach().float().numpy()
    heads = config.num_heads if "q_proj" in name else config.num_kv_heads if "k_proj" in name else 0
    if heads:
        halves = values.reshape(heads, 2, config.head_dim // 2, *values.shape[1:])
        values = halves.swapaxes(1, 2).reshape(values.shape)
    return np.ascontiguousarray(values)


def _add_vocabulary(writer: Any, directory: Path, size: int) -> None:
    """Tokens, of which the bench uses the ids alone."""
    tokenizer = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    if tokenizer["model"].get("type") != "BPE":
        raise ZweaveError("llama.cpp is asked for models with a vocabulary of byte pairs alone")
    tokens = {index: (f"[PAD{index}]", _UNUSED) for index in range(size)}
    tokens |= {index: (text, _NORMAL) for text, index in tokenizer["model"]["vocab"].items()}
    tokens |= {token["id"]: (token["content"], _CONTROL) for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens[index][0] for index in range(size)])
    writer.add_token_types([tokens[index][1] for index in range(size)])
    writer.add_token_merges(list(map(_merge, tokenizer["model"]["merges"])))


def _merge(pair: str | Iterable[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _written(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
