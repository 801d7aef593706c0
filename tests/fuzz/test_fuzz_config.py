"""Any config.json is refused in one line or means what transformers means by it."""

import json
import logging
import math
import warnings

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from zweave.checkpoint import ModelConfig
from zweave.checkpoint.rope_tables import rope_tables
from zweave.errors import ZweaveError

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
NUMBERS = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([10**9, 10**30, -(10**30), 10**400, 0.0, 1e-300, 1e300, 0.5, 1.0, 2.0, 8.0]),
    st.floats(),
)
FACTORS = st.lists(st.sampled_from([1.0, 1.5, 4.0]), min_size=3, max_size=5)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.text(max_size=5),
    st.lists(NUMBERS, max_size=3),
    st.builds(dict),
    FACTORS,
)


def _some(keys):
    """Sensible values for some of the keys, with up to two that are anything."""
    sensible = st.fixed_dictionaries({}, optional=keys)
    return st.builds(
        lambda one, other: {**one, **other},
        sensible,
        st.dictionaries(st.sampled_from(list(keys)), JUNK, max_size=2),
    )


ROPE = {
    "rope_type": st.sampled_from(
        ["default", "linear", "dynamic", "llama3", "yarn", "longrope", "su", "mrope"]
    ),
    "type": st.sampled_from(["linear", "yarn"]),
    "rope_theta": st.sampled_from([1e4, 5e5, 10]),
    "factor": st.sampled_from([1.0, 2.0, 8]),
    "original_max_position_embeddings": st.integers(8, 64),
    "low_freq_factor": st.sampled_from([1.0, 2]),
    "high_freq_factor": st.sampled_from([4.0, 8]),
    "attention_factor": st.sampled_from([1.0, 1.5]),
    "beta_fast": st.sampled_from([32, 16.0, None]),
    "beta_slow": st.sampled_from([1, 2.0, None]),
    "mscale": st.sampled_from([1.0, 0.7]),
    "mscale_all_dim": st.sampled_from([1.0, 0.7]),
    "truncate": st.booleans(),
    "short_factor": FACTORS,
    "long_factor": FACTORS,
    "partial_rotary_factor": st.just(1.0),
}
KEYS = {
    "architectures": st.sampled_from([["LlamaForCausalLM"], ["Qwen3Model"], []]),
    **{name: st.just(value) for name, value in SIZES.items()},
    "head_dim": st.sampled_from([8, 16]),
    "rms_norm_eps": st.sampled_from([1e-5, 1e-6]),
    "rope_theta": st.sampled_from([1e4, 5e5, 10]),
    "rope_scaling": _some(ROPE),
    "rope_parameters": _some(ROPE),
    "original_max_position_embeddings": st.integers(8, 64),
    "tie_word_embeddings": st.booleans(),
    "attention_bias": st.booleans(),
    "mlp_bias": st.booleans(),
    "use_sliding_window": st.booleans(),
    "sliding_window": st.integers(1, 64),
    "max_window_layers": st.integers(0, 4),
    "layer_types": st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=3, max_size=3),
    "hidden_act": st.sampled_from(["silu", "swish"]),
    "torch_dtype": st.sampled_from(["auto", "bfloat16"]),
    "eos_token_id": st.integers(0, 99),
    "quantization_config": st.none(),
}


@pytest.fixture(scope="module", autouse=True)
def quiet_transformers():
    """Its warnings fill the report of a failure."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """The config of this content; None if it is refused, in one line."""
    directory = tmp_path_factory.mktemp("config")

    def read(content):
        (directory / "config.json").write_bytes(content)
        try:
            with warnings.catch_warnings(record=True):
                return ModelConfig.from_directory(directory)
        except ZweaveError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 500
            return None

    return read


def _theirs(raw):
    """transformers' config, and its rotary embedding; None where it takes no such file."""
    try:
        config = AutoConfig.for_model(**raw)
        return config, LlamaRotaryEmbedding(config)
    # It fails in many types.
    except Exception:
        return None


def _windows(config):
    """Each layer's window as transformers' models mask it."""
    window = getattr(config, "sliding_window", None) or 0
    types = getattr(config, "layer_types", None)
    if config.model_type == "llama":
        return (0,) * config.num_hidden_layers
    if config.model_type == "mistral" or types is None:
        return (window,) * config.num_hidden_layers
    return tuple(window if name == "sliding_attention" else 0 for name in types)


@given(_some(KEYS), st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]))
def test_any_config(read, changes, kind):
    raw = {"model_type": kind, **SIZES, **changes}
    ours = read(json.dumps(raw).encode())
    if ours is None or ours.head_dim > 256 or ours.num_layers > 16:
        return
    tables = rope_tables(ours, 80)
    assert all(table.isfinite().all() for table in tables)
    theirs = _theirs(raw)
    if theirs is None:
        return
    event("compared with transformers")
    config, rotary = theirs
    assert ours.hidden_size == config.hidden_size
    assert ours.num_kv_heads == config.num_key_value_heads
    assert math.isclose(ours.rms_norm_eps, config.rms_norm_eps)
    assert ours.vocab_size == config.vocab_size
    assert ours.sliding_window == _windows(config)
    assert ours.tie_embeddings == bool(config.tie_word_embeddings)
    for table, expected in zip(tables, rotary(torch.zeros(1), torch.arange(80)[None]), strict=True):
        torch.testing.assert_close(table, expected[0, :, : table.shape[1]], rtol=1e-4, atol=1e-3)


@given(st.binary(max_size=40), st.integers(0, 400), st.booleans())
def test_any_bytes(read, piece, at, cut):
    content = json.dumps({"model_type": "llama", **SIZES, "rope_scaling": {"type": "yarn", "factor": 2.0}})
    content = content.encode()
    read(content[:at] + piece + (b"" if cut else content[at + len(piece) :]))
