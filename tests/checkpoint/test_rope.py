"""Rotary tables equal transformers' for every scaling."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from zweave.checkpoint import ModelConfig
from zweave.checkpoint.rope_tables import rope_tables

SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "yarn-options": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "mscale": 0.707,
        "mscale_all_dim": 1.5,
    },
    "yarn-factor": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 512,
        "attention_factor": 1.25,
    },
    "yarn-no-factor": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 512,
        "short_factor": [1 + index / 64 for index in range(32)],
        "long_factor": [1 + index / 4 for index in range(32)],
    },
    "longrope-options": {
        "rope_type": "longrope",
        "factor": 2.0,
        "attention_factor": 1.5,
        "short_factor": [1.0] * 32,
        "long_factor": [3.0] * 32,
    },
}


def _compare(theirs, length, tmp_path):
    theirs.architectures = ["LlamaForCausalLM"]
    theirs.save_pretrained(tmp_path)
    expected = LlamaRotaryEmbedding(theirs)(torch.zeros(1), torch.arange(length)[None])
    tables = rope_tables(ModelConfig.from_directory(tmp_path), length)
    for ours, reference in zip(tables, expected, strict=True):
        assert ours.shape == (length, 32)
        assert ours.dtype == torch.float32
        # The angles reach 3000; frequencies that differ in their last bit move them by 2e-4.
        torch.testing.assert_close(ours, reference[0, :, :32], rtol=0, atol=5e-4)
        torch.testing.assert_close(ours[:64], reference[0, :64, :32], rtol=0, atol=1e-5)


def _config(scaling, **fields):
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 1024}
    return LlamaConfig(**{**sizes, **fields}, rope_parameters=scaling)


# Shorter than every original context, between it and the model's length, and longer than both.
@pytest.mark.parametrize("length", [200, 700, 3000])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_tables_equal_transformers(name, theta, length, tmp_path):
    _compare(_config({"rope_theta": theta, **SCALINGS[name]}), length, tmp_path)


@pytest.mark.parametrize("kind", ["llama3", "yarn", "longrope"])
def test_the_original_length_at_the_top_level_wins(kind, tmp_path):
    """Phi-3 writes it there."""
    theirs = _config({"rope_theta": 10000.0, **SCALINGS[kind]}, original_max_position_embeddings=300)
    _compare(theirs, 400, tmp_path)
    assert ModelConfig.from_directory(tmp_path).rope_scaling["original_max_position_embeddings"] == 300
