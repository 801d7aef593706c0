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
}


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_tables_equal_transformers(name, theta, tmp_path):
    theirs = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": theta, **SCALINGS[name]},
    )
    theirs.architectures = ["LlamaForCausalLM"]
    theirs.save_pretrained(tmp_path)
    expected = LlamaRotaryEmbedding(theirs)(torch.zeros(1), torch.arange(3000)[None])
    tables = rope_tables(ModelConfig.from_directory(tmp_path), 3000)
    for ours, reference in zip(tables, expected, strict=True):
        assert ours.shape == (3000, 32)
        assert ours.dtype == torch.float32
        # The angles reach 3000; frequencies that differ in their last bit move them by 2e-4.
        torch.testing.assert_close(ours, reference[0, :, :32], rtol=0, atol=5e-4)
        torch.testing.assert_close(ours[:64], reference[0, :64, :32], rtol=0, atol=1e-5)
