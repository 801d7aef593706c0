"""A checkpoint of random weights on disk, for machines without a network."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from zweave.checkpoint import ModelConfig
from zweave.io.cache_dir import CACHE_VARIABLE

_END = "<|endoftext|>"


@contextmanager
def random_checkpoint(config: ModelConfig) -> Iterator[Path]:
    """The directory of a model; it and what is cached meanwhile are deleted in the end."""
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="zweave-") as folder:
        os.environ[CACHE_VARIABLE] = folder
        try:
            directory = Path(folder) / "model"
            directory.mkdir()
            _write(directory, config)
            yield directory
        finally:
            os.environ.pop(CACHE_VARIABLE)
            if before is not None:
                os.environ[CACHE_VARIABLE] = before


def _write(directory: Path, config: ModelConfig) -> None:
    (directory / "config.json").write_text(json.dumps(_hf_config(config)))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else torch.randn(shape, generator=generator).mul_(shape[1] ** -0.5).bfloat16()
        for name, shape in config.tensor_shapes().items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(directory)


def _hf_config(config: ModelConfig) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def _write_tokenizer(directory: Path) -> None:
    """A token a byte; ids beyond have no text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([_END, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_END, normalized=False, special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": _END, "eos_token": _END}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
