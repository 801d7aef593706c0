"""Rotary positions of GGUF metadata give llama.cpp's numbers, recomputed here by its own formulas."""

import math

import numpy as np
import pytest
import torch

from zweave.checkpoint import ModelConfig
from zweave.checkpoint.gguf.rope import rope_fields
from zweave.checkpoint.hf_config import config_fields
from zweave.checkpoint.rope_tables import rope_tables
from zweave.errors import ZweaveError

HEAD = 64
LENGTH = 256
BASE = {
    "model_type": "llama",
    "hidden_size": HEAD,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": LENGTH,
}
FACTORS = {
    "rope_factors_short.weight": np.linspace(1, 2, HEAD // 2, dtype=np.float32),
    "rope_factors_long.weight": np.linspace(1, 8, HEAD // 2, dtype=np.float32),
}


def _fields(metadata, factors=None):
    metadata = {f"llama.{key}": value for key, value in ({"context_length": LENGTH} | metadata).items()}
    return rope_fields("llama", metadata, factors or {})


def _tables(metadata, factors, positions):
    config = ModelConfig(**config_fields(BASE | _fields(metadata, factors)))
    return config, rope_tables(config, positions)


def _llama_cpp(metadata, factors, positions):
    """`load_hparams`, `llama_context::llama_context`, `get_rope_factors` and `rope_yarn`, in numpy."""
    rope = {key.removeprefix("rope."): value for key, value in metadata.items()}
    kind = rope.get("scaling.type", "linear")
    factor = rope.get("scaling.factor", rope.get("scale_linear", 0.0))
    freq_scale = 1.0 if factor == 0 or kind == "none" else 1 / factor
    context = rope.get("scaling.original_context_length", LENGTH) or LENGTH
    base = rope.get("freq_base", 10000.0)
    ext_factor = 1.0 if kind == "yarn" else 0.0
    attn_factor = 1.0
    if ext_factor:
        attn_factor = 1.0 + 0.1 * math.log(1 / freq_scale)
        attn_factor *= 1 / (1 + 0.1 * math.log(1 / freq_scale))
    attn_factor *= rope.get("scaling.attn_factor", 1.0)
    divisors = np.ones(HEAD // 2)
    if factors:
        divisors = factors[f"rope_factors_{'long' if positions > context else 'short'}.weight"]

    def corr_dim(turns):
        return HEAD * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(0, math.floor(corr_dim(32))), min(HEAD - 1, math.ceil(corr_dim(1)))
    pair = np.arange(HEAD // 2)
    extrapolated = np.arange(positions)[:, None] * base ** (-2 * pair / HEAD) / divisors
    ramp = (1 - np.clip((pair - low) / max(0.001, high - low), 0, 1)) * ext_factor
    theta = freq_scale * extrapolated * (1 - ramp) + extrapolated * ramp
    if ext_factor:
        attn_factor *= 1 + 0.1 * math.log(1 / freq_scale)
    return np.cos(theta) * attn_factor, np.sin(theta) * attn_factor


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}


@pytest.mark.parametrize("positions", [100, 300])
@pytest.mark.parametrize(
    ("metadata", "factors"),
    [
        ({}, None),
        ({"rope.freq_base": 500000.0}, None),
        ({"rope.scaling.factor": 2.5}, None),
        ({"rope.scale_linear": 2.5}, None),
        ({"rope.scale_linear": 2.5, "rope.scaling.factor": 0.0}, None),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.5}, None),
        (YARN, None),
        (YARN | {"rope.scaling.original_context_length": 64, "rope.freq_base": 1e6}, None),
        (YARN | {"rope.scaling.original_context_length": 0}, None),
        (YARN | {"rope.scaling.attn_factor": 0.8}, None),
        (YARN | {"rope.scaling.factor": 1.0, "rope.scaling.type": "yarn"}, None),
        ({"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 128}, FACTORS),
        ({"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.19}, FACTORS),
    ],
    ids=lambda value: "-".join(key.split(".")[-1] for key in value) if value else "",
)
def test_tables_are_those_of_llama_cpp(metadata, factors, positions):
    _, tables = _tables(metadata, factors, positions)
    for ours, theirs in zip(tables, _llama_cpp(metadata, factors, positions), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), rtol=0, atol=5e-5)


@pytest.mark.parametrize("key", ["yarn_attn_factor", "yarn_ext_factor", "yarn_beta_fast", "yarn_beta_slow"])
def test_keys_that_llama_cpp_does_not_read_are_named(key, recwarn):
    plain = _fields(YARN)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=rf"llama\.rope\.scaling\.{key} 2\.5 is ignored, as llama\.cpp does"):
        assert _fields(YARN | {f"rope.scaling.{key}": 2.5}) == plain


def test_yarn_reaches_the_factor_times_the_original_length():
    config, _ = _tables(YARN | {"rope.scaling.original_context_length": 100}, None, 8)
    assert config.max_position == 400


@pytest.mark.parametrize(
    ("metadata", "factors", "message"),
    [
        ({"rope.scaling.type": "su"}, {}, "rope scaling 'su' is not supported"),
        ({"rope.scaling.type": ["yarn"]}, {}, "is not supported"),
        ({"rope.scaling.factor": "4"}, {}, "scaling.factor must be a positive number, not '4'"),
        ({"rope.scaling.factor": -4.0}, {}, "scaling.factor must be a positive number"),
        ({"rope.freq_base": 0.0}, {}, r"freq_base must be a positive number, not 0\.0"),
        ({"rope.scaling.attn_factor": 2.0}, {}, "attn_factor 2.0 is not supported"),
        (YARN, {"rope_freqs.weight": np.ones(HEAD // 2)}, "beside another rope scaling"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}, FACTORS, "longrope with factor 2.0"),
    ],
    ids=range(8),
)
def test_refusals(metadata, factors, message):
    with pytest.raises(ZweaveError, match=message):
        _fields(metadata, factors)
