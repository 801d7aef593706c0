"""A model's architecture and sizes, read from its Hugging Face `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ZweaveError, shortened
from ..validation import is_integer, is_positive
from .hf_config import ARCHITECTURES, config_fields, read_json
from .module_name import LINEARS, MLP_LINEARS, linear_of, module_name
from .rope_config import LIMIT


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of a Llama, Mistral, Qwen2 or Qwen3 model.

    rope_scaling: None, or {"rope_type": "linear" | "dynamic" | "llama3" | "yarn" | "longrope", ...} with its
        numbers.
    max_position: positions that the rotary positions reach under their scaling.
    attention_bias: whether q, k and v have biases.
    attention_out_bias: whether o has one.
    qk_norm: whether queries and keys pass an RMS norm.
    sliding_window: how many tokens each layer attends to, one number a layer, 0 for all tokens.
    Raises ZweaveError for sizes that do not fit together.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    max_position: int = 2048
    tie_embeddings: bool = False
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ZweaveError(f"architecture {self.architecture!r} is not one of {', '.join(ARCHITECTURES)}")
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "vocab_size",
            "max_position",
        ):
            value = getattr(self, name)
            if not (is_integer(value) and 0 < value < LIMIT):
                raise ZweaveError(f"model config: {name} must be a positive integer, not {shortened(value)}")
        for name in ("rms_norm_eps", "rope_theta"):
            if not is_positive(getattr(self, name)):
                raise ZweaveError(
                    f"model config: {name} must be a positive number, not {shortened(getattr(self, name))}"
                )
        if self.num_heads % self.num_kv_heads:
            raise ZweaveError(
                f"model config: {self.num_heads} heads cannot share {self.num_kv_heads} key-value heads"
            )
        if self.head_dim % 2:
            raise ZweaveError(
                f"model config: head_dim must be even for rotary positions, not {self.head_dim}"
            )
        if not self.sliding_window:
            object.__setattr__(self, "sliding_window", (0,) * self.num_layers)
        if len(self.sliding_window) != self.num_layers:
            raise ZweaveError(
                f"model config: {len(self.sliding_window)} attention windows for {self.num_layers} layers"
            )

    @classmethod
    def from_directory(cls, path: str | Path) -> "ModelConfig":
        """Reads `config.json`, as transformers 4 or 5 writes it.

        Raises ZweaveError if the model is not one that zweave can run, or the file is malformed.
        """
        directory = Path(path)
        if not (directory / "config.json").is_file():
            raise ZweaveError(f"{directory} has no config.json: give the directory of a Hugging Face model")
        return cls(**config_fields(read_json(directory / "config.json")))

    @property
    def default_max_model_len(self) -> int:
        """Tokens of a sequence that are served unless the user asks for another number.

        Under longrope those that take its short factors: the long ones would change shorter sequences, too.
        """
        scaling = self.rope_scaling or {}
        if scaling.get("rope_type") == "longrope":
            return min(self.max_position, int(scaling["original_max_position_embeddings"]))
        return self.max_position

    def adapted_shapes(self) -> dict[str, tuple[int, int]]:
        """Module name to (out_features, in_features) of every adapted matrix, in layer order."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        attention = ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries))
        mlp = ((inner, hidden), (inner, hidden), (hidden, inner))
        return {
            module_name(layer, linear): shape
            for layer in range(self.num_layers)
            for linear, shape in zip(LINEARS, attention + mlp, strict=True)
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor that a checkpoint of this model has to hold."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size),
            "model.norm.weight": (self.hidden_size,),
        }
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        for module, shape in self.adapted_shapes().items():
            shapes[f"{module}.weight"] = shape
            if self._has_bias(module):
                shapes[f"{module}.bias"] = shape[:1]
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}"
            shapes[f"{prefix}.input_layernorm.weight"] = (self.hidden_size,)
            shapes[f"{prefix}.post_attention_layernorm.weight"] = (self.hidden_size,)
            if self.qk_norm:
                shapes[f"{prefix}.self_attn.q_norm.weight"] = (self.head_dim,)
                shapes[f"{prefix}.self_attn.k_norm.weight"] = (self.head_dim,)
        return shapes

    def _has_bias(self, module: str) -> bool:
        linear = linear_of(module)
        if linear in MLP_LINEARS:
            return self.mlp_bias
        return self.attention_out_bias if linear == "o_proj" else self.attention_bias
