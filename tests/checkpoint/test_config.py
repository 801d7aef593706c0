"""Configs of all architectures, as transformers 4 and 5 write them, and what is refused."""

import json

import pytest
from transformers import AutoConfig

from zweave.checkpoint import ModelConfig
from zweave.errors import ZweaveError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


@pytest.fixture
def read(tmp_path):
    """Reads a config.json of this content (and a generation_config.json)."""

    def read(raw, generation=None):
        (tmp_path / "config.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return ModelConfig.from_directory(tmp_path)

    return read


def test_defaults_are_those_of_transformers(read):
    for kind, name in (("llama", "Llama"), ("mistral", "Mistral"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3")):
        sizes = {"num_attention_heads": 32} if kind != "llama" else {}
        raw = LLAMA | sizes | {"model_type": kind, "architectures": [f"{name}ForCausalLM"]}
        ours = read(raw)
        theirs = AutoConfig.for_model(**raw)
        assert ours.num_kv_heads == theirs.num_key_value_heads
        assert ours.head_dim == (
            getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
        )
        assert ours.max_position == theirs.max_position_embeddings
        assert ours.rms_norm_eps == theirs.rms_norm_eps
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        assert ours.sliding_window == ((4096,) * 3 if kind == "mistral" else (0,) * 3)
        assert ours.tie_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_tensor_shapes_are_those_of_transformers(tiny_model, architecture):
    from safetensors import safe_open

    directory = tiny_model(architecture)
    with safe_open(directory / "model.safetensors", "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert ModelConfig.from_directory(directory).tensor_shapes() == stored


@pytest.mark.parametrize(
    "biases", [{"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": True}]
)
def test_llama_switches_change_the_shapes_likewise(tiny_model, biases):
    from safetensors import safe_open

    directory = tiny_model("llama", **biases)
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert set(ModelConfig.from_directory(directory).tensor_shapes()) == set(file.keys())


def test_adapted_shapes_are_in_layer_order(tiny_model):
    shapes = ModelConfig.from_directory(tiny_model("qwen3")).adapted_shapes()
    assert list(shapes)[:8] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    assert list(shapes.values())[:7] == [(64, 32), (32, 32), (32, 32), (32, 64), (48, 32), (48, 32), (32, 48)]


def test_old_and_new_rope_spellings(read):
    scaling = {"factor": 4.0, "original_max_position_embeddings": 512}
    old = read(LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", **scaling}})
    new = read(LLAMA | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", **scaling}})
    nested = {"full_attention": {"rope_theta": 5e5, "rope_type": "yarn", **scaling}}
    assert old == new == read(LLAMA | {"rope_parameters": nested})
    assert old.rope_theta == 5e5
    assert old.rope_scaling["rope_type"] == "yarn"
    assert read(LLAMA | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}).rope_scaling is None


def test_original_positions_default_to_the_models(read):
    yarn = read(LLAMA | {"max_position_embeddings": 777, "rope_scaling": {"type": "yarn", "factor": 2.0}})
    assert yarn.rope_scaling["original_max_position_embeddings"] == 777


LONGROPE = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    ("scaling", "reach"),
    [
        # Qwen's recipe: the config keeps its own length.
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"type": "yarn", "factor": 4.0}, 16384),
        ({"type": "linear", "factor": 2.5}, 10240),
        ({"type": "dynamic", "factor": 2.0}, 8192),
        (
            {
                "type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            },
            4096,
        ),
        ({"type": "longrope", **LONGROPE}, 4096),
        ({"type": "su", **LONGROPE}, 4096),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else str(value),
)
def test_the_reach_of_scaled_positions_is_that_of_vllm(read, scaling, reach):
    config = read(LLAMA | {"max_position_embeddings": 4096, "rope_scaling": scaling})
    assert config.max_position == reach
    longrope = config.rope_scaling["rope_type"] == "longrope"
    assert config.default_max_model_len == (1024 if longrope else reach)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LlamaModel"]}, "'LlamaModel'.*read as LlamaForCausalLM"),
        ({"architectures": ["LLaMAForCausalLM"]}, "read as LlamaForCausalLM"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 8}}, "linear takes no .*beta_fast"),
        ({"rope_scaling": {"factor": 2.0}}, "default takes no .*factor"),
    ],
)
def test_what_is_ignored_is_said(read, change, message):
    with pytest.warns(UserWarning, match=message) as caught:
        read(LLAMA | change)
    assert not any("\n" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("dtype", ["auto", "float8", "torch.bfloat16", None])
def test_the_dtype_of_a_config_does_not_matter(read, dtype):
    """The tensors have their own."""
    assert read(LLAMA | {"torch_dtype": dtype}) == read(LLAMA)


def test_a_byte_order_mark_is_no_content(read):
    assert read("\ufeff" + json.dumps(LLAMA)) == read(LLAMA)


def test_sliding_windows_follow_transformers(read):
    qwen = LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2}
    assert read(qwen | {"sliding_window": 7}).sliding_window == (0, 0, 0)
    window = {"use_sliding_window": True, "sliding_window": 7}
    assert read(qwen | window | {"max_window_layers": 1}).sliding_window == (0, 7, 7)
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read(qwen | window | {"layer_types": types}).sliding_window == (7, 0, 7)
    mistral = qwen | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    assert read(mistral | {"sliding_window": None}).sliding_window == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3"}, r"'gemma3' is not supported.*LlamaForCausalLM"),
        ({"model_type": None}, "not supported"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of names"),
        ({"hidden_act": "gelu"}, "'gelu' is not supported: only silu"),
        ({"rope_scaling": {"rope_type": "mrope"}}, "'mrope' is not supported"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "is not supported: supported: default, linear"),
        ({"rope_scaling": {"rope_type": "dynamic", "alpha": 1000.0}}, "positive number factor"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim above 2"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0]}},
            "needs long_factor, a list of 8 positive numbers",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0}},
            "attention_factor must be a positive number, not 0",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "positive number factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "positive number factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4,
                    "high_freq_factor": 4,
                }
            },
            "high_freq_factor must be above",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "rope_theta above 1"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object, not 'linear'"),
        ({"rope_parameters": [2]}, "rope_parameters must be an object"),
        ({"rope_parameters": {"a": {"rope_theta": 1.0}, "b": {"rope_theta": 2.0}}}, "differ by layer type"),
        ({"rope_theta": "x"}, "rope_theta must be"),
        ({"rope_theta": 0}, "rope_theta must be a positive number, not 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": 0}, "hidden_size must be a positive integer"),
        ({"hidden_size": True}, "hidden_size must be a positive integer"),
        ({"hidden_size": 66}, "cannot be divided among 4 heads"),
        ({"head_dim": 15}, "even"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers must be a positive integer below"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": 10**400}, "vocab_size"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_refusals_name_the_fault(read, change, message):
    with pytest.raises(ZweaveError, match=message) as caught:
        read(LLAMA | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"a": "\\ud800'])
def test_malformed_json(read, content):
    with pytest.raises(ZweaveError, match="JSON"):
        read(content)


def test_directory_without_config(tmp_path):
    with pytest.raises(ZweaveError, match=r"no config\.json"):
        ModelConfig.from_directory(tmp_path)
