"""GGUF files of tiny models, as llama.cpp's converter writes them."""

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel

from zweave.checkpoint import Checkpoint
from zweave.checkpoint.gguf.convert import convert

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
}
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _alphabet():
    return TOKENS + sorted(ByteLevel.alphabet()) + ["Ġa", "12", "he", "Ġhe", "<tool>"]


def _write_tokenizer(writer, pre="smollm", tokens=None):
    tokens = tokens or _alphabet()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 4) + [4])
    writer.add_token_merges(["Ġ a", "1 2", "h e", "Ġ he"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}<|im_end|>")


def _permute(weights, heads):
    """llama.cpp's own reordering of query and key rows."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def _write(path, directory, kind=None, change=None, extra=None):
    """A GGUF file of a tiny model's weights, as llama.cpp's converter writes it."""
    config = Checkpoint(directory).config
    architecture = "llama" if config.architecture == "mistral" else config.architecture
    writer = gguf.GGUFWriter(path, architecture)
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
    _write_tokenizer(writer)
    if extra is not None:
        extra(writer)
    tensors = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        values = tensor.numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values = _permute(values, config.num_heads if "q_proj" in name else config.num_kv_heads)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        tensors[name] = values
    if change is not None:
        change(tensors)
    for name, values in tensors.items():
        if kind is not None and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def gguf_model(tiny_model):
    """A tiny model with the vocabulary of the files that `write_gguf` writes."""
    return lambda architecture="llama", **options: tiny_model(
        architecture, vocab_size=len(_alphabet()), **options
    )


@pytest.fixture(scope="session")
def write_gguf():
    """`write_gguf(path, directory, kind=None, change=None, extra=None)`: the file of a model's weights.

    kind: the type that matrices are quantised to.
    change: gets the tensors, name to array, before they are written.
    extra: gets the writer, to add metadata.
    Returns the path.
    """
    return _write


@pytest.fixture(scope="session")
def converted():
    """`converted(path, target)`: the directory that a GGUF file is converted to, which is made."""

    def make(path, target):
        target.mkdir()
        convert(path, target)
        return target

    return make
