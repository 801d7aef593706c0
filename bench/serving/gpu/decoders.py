"""Configurations of decoders that are made of random weights."""

from zweave.checkpoint import ModelConfig

from ...kernels.shapes import MODELS

# What the shapes of the linears do not tell.
_OTHERS = {
    "llama3-8b": {"num_layers": 32, "head_dim": 128, "vocab_size": 128256},
    "smollm2": {"num_layers": 30, "head_dim": 64, "vocab_size": 49152, "tie_embeddings": True},
}
_TINY = ModelConfig(
    "llama",
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=264,
)


def decoder_config(name: str) -> ModelConfig:
    """The configuration of a decoder with a name of `DECODERS`."""
    if name == "tiny":
        return _TINY
    others = _OTHERS[name]
    shape = {label: shape for shape in MODELS[name] for label in shape.name.split()}
    head_dim = int(others["head_dim"])
    return ModelConfig(
        "llama",
        hidden_size=shape["q"].N,
        intermediate_size=shape["gate"].M,
        num_heads=shape["q"].M // head_dim,
        num_kv_heads=shape["k"].M // head_dim,
        max_position=8192,
        **others,  # type: ignore[arg-type]
    )
