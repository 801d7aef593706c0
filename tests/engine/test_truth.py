"""Logits of every architecture against transformers with the experts merged into float32 weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zweave import Engine, Expert
from zweave.checkpoint import Checkpoint

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}

MODELS = {
    "llama": ("llama", {}),
    "llama, rope llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {}),
    "qwen3, odd sizes": (
        "qwen3",
        {
            "hidden_size": 50,
            "intermediate_size": 77,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 6,
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_transformers_with_merged_weights(
    tiny_model: Callable[..., Path],
    random_expert: Callable[..., Expert],
    merged_logits: Callable[..., Tensor],
    prompt_logits: Callable[..., list[Tensor]],
    name: str,
) -> None:
    architecture, overrides = MODELS[name]
    directory = tiny_model(architecture, **overrides)
    config = Checkpoint(directory).config
    engine = Engine(directory, dtype="float32", kv_tokens=1024, block_size=8)
    experts = {
        "a": random_expert(config.adapted_shapes(), seed=1),
        "renormalised": random_expert(config.adapted_shapes(), seed=2, renormalise=True),
    }
    for expert_name, expert in experts.items():
        engine.load_expert(expert_name, expert)
    generator = torch.Generator().manual_seed(0)
    choices = [None, "a", "renormalised", {"a": 0.3}, {"renormalised": 1.7}]
    prompts = [
        torch.randint(0, config.vocab_size, (length,), generator=generator).tolist()
        for length in (40, 1, 33, 17, 90)
    ]
    served = prompt_logits(engine, list(zip(prompts, choices, strict=True)))
    for prompt, choice, logits in zip(prompts, choices, served, strict=True):
        torch.testing.assert_close(
            logits, merged_logits(directory, experts, choice, prompt), rtol=1e-3, atol=2e-4
        )
