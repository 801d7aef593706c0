"""The decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3) over factored linears and a paged cache."""

import torch
from torch import Tensor

from zweave.bank import Bank
from zweave.batch import Batch
from zweave.checkpoint import Checkpoint
from zweave.config import ModelConfig
from zweave.decompose import Decomposition
from zweave.kernels import (
    Packed,
    add_rms_norm,
    linear,
    pack,
    paged_attention,
    rms_norm,
    rope,
    silu_mul,
    svf_linear,
    write_kv,
)
from zweave.kv_cache import KVCache, LayerCache
from zweave.rope import rope_tables


class SvfLinear:
    """An adapted linear: y_t = U (scale[slot_t] ⊙ (Vᵀ x_t)) + b, U and V shared by all slots."""

    __slots__ = ("bias", "scale", "u", "vt")

    def __init__(self, vt: Packed, u: Packed, scale: Tensor, bias: Tensor | None) -> None:
        self.vt = vt
        self.u = u
        self.scale = scale
        self.bias = bias

    def __call__(self, x: Tensor, slot: Tensor) -> Tensor:
        return svf_linear(x, self.vt, self.u, self.scale, slot, self.bias)


class Attention:
    """Grouped-query attention with rotary positions, and norms of queries and keys where the model has them."""

    def __init__(self, weights: "Weights", config: ModelConfig, layer: int) -> None:
        prefix = f"model.layers.{layer}.self_attn"
        self.q_proj = weights.adapted(f"{prefix}.q_proj")
        self.k_proj = weights.adapted(f"{prefix}.k_proj")
        self.v_proj = weights.adapted(f"{prefix}.v_proj")
        self.o_proj = weights.adapted(f"{prefix}.o_proj")
        self.q_norm = weights.tensor(f"{prefix}.q_norm.weight") if config.qk_norm else None
        self.k_norm = weights.tensor(f"{prefix}.k_norm.weight") if config.qk_norm else None
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.window = config.sliding_window[layer]
        self.eps = config.rms_norm_eps

    def __call__(self, x: Tensor, batch: Batch, cache: LayerCache, cos: Tensor, sin: Tensor) -> Tensor:
        q = self._heads(self.q_proj(x, batch.slot), self.q_norm)
        k = self._heads(self.k_proj(x, batch.slot), self.k_norm)
        v = self._heads(self.v_proj(x, batch.slot), None)
        rope(q, k, cos, sin, batch.position)
        write_kv(k, v, cache.k, cache.v, batch.kv_index)
        y = paged_attention(
            q, cache.k, cache.v, batch.block_table, batch.sequence, batch.position, self.scale, self.window
        )
        return self.o_proj(y.flatten(1), batch.slot)

    def _heads(self, x: Tensor, norm: Tensor | None) -> Tensor:
        """[T, heads * D] to [T, heads, D]."""
        tokens, width = x.shape
        if norm is not None:
            x = rms_norm(x.view(-1, self.head_dim), norm, self.eps)
        return x.view(tokens, width // self.head_dim, self.head_dim)


class Mlp:
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, weights: "Weights", layer: int) -> None:
        prefix = f"model.layers.{layer}.mlp"
        self.gate_proj = weights.adapted(f"{prefix}.gate_proj")
        self.up_proj = weights.adapted(f"{prefix}.up_proj")
        self.down_proj = weights.adapted(f"{prefix}.down_proj")

    def __call__(self, x: Tensor, slot: Tensor) -> Tensor:
        return self.down_proj(silu_mul(self.gate_proj(x, slot), self.up_proj(x, slot)), slot)


class Weights:
    """Reads a model's tensors, cast and packed for a device."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        decomposition: Decomposition,
        bank: Bank,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._checkpoint = checkpoint
        self._decomposition = decomposition
        self._bank = bank
        self._present = frozenset(checkpoint.names())
        self.dtype = dtype
        self.device = device

    def tensor(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name).to(self.device, self.dtype, copy=True)

    def adapted(self, module: str) -> SvfLinear:
        u, _, vt = self._decomposition.factors(module)
        bias = f"{module}.bias"
        return SvfLinear(
            vt=pack(vt.to(self.device, self.dtype)),
            u=pack(u.to(self.device, self.dtype)),
            scale=self._bank.columns(module),
            bias=self.tensor(bias) if bias in self._present else None,
        )


class Model:
    """Computes a batch's keys and values into the cache and the logits of its sampled tokens."""

    def __init__(self, weights: Weights, config: ModelConfig, max_length: int) -> None:
        self.config = config
        self.embedding = weights.tensor("model.embed_tokens.weight")
        head = self.embedding if config.tie_embeddings else weights.tensor("lm_head.weight")
        self.head = pack(head)
        self.norm = weights.tensor("model.norm.weight")
        self.cos, self.sin = (table.to(weights.device) for table in rope_tables(config, max_length))
        self.layers: list[tuple[Tensor, Attention, Tensor, Mlp]] = []
        for layer in range(config.num_layers):
            prefix = f"model.layers.{layer}"
            self.layers.append(
                (
                    weights.tensor(f"{prefix}.input_layernorm.weight"),
                    Attention(weights, config, layer),
                    weights.tensor(f"{prefix}.post_attention_layernorm.weight"),
                    Mlp(weights, layer),
                )
            )

    @torch.inference_mode()
    def __call__(self, batch: Batch, cache: KVCache) -> Tensor:
        """Returns float32 logits [len(batch.sampled), vocabulary]."""
        eps = self.config.rms_norm_eps
        x = self.embedding[batch.tokens]
        residual = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for (input_norm, attention, mlp_norm, mlp), layer_cache in zip(
            self.layers, cache.layers, strict=True
        ):
            x = add_rms_norm(x, residual, input_norm, eps)
            x = attention(x, batch, layer_cache, self.cos, self.sin)
            x = add_rms_norm(x, residual, mlp_norm, eps)
            x = mlp(x, batch.slot)
        x = add_rms_norm(x[batch.sampled], residual[batch.sampled], self.norm, eps)
        return linear(x, self.head, out_dtype=torch.float32)
