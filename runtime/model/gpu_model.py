"""The decoder of the Llama family on a GPU: fused products over plain weights, in one mode a step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.kernels import DeviceOps, JoinedLinear, LinearMode, StackedLinear

from ..checkpoint.model_config import ModelConfig
from ..checkpoint.rope_tables import rope_tables
from ..kv_cache.block_pool import KVCache, LayerCache
from .gpu_batch import GpuBatch
from .gpu_weights import DeviceWeights
from .layer_schedule import StateCapture


@dataclass(frozen=True, slots=True)
class GpuLayer:
    """Weights of a layer; the norms as in `DecoderLayer`."""

    input_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    qkv: StackedLinear | JoinedLinear
    o: StackedLinear | JoinedLinear
    gate_up: StackedLinear | JoinedLinear
    down: StackedLinear | JoinedLinear
    window: int


class GpuModel:
    """Computes a batch's keys and values into its cache and the logits of its sampled tokens, without waiting for them.

    What it launches follows from shapes and the mode alone, so a graph can be captured of it.

    max_length: tokens that a sequence may have
    cache: set before the first step; its size may depend on what the weights leave of a device's memory
    """

    cache: KVCache

    def __init__(self, weights: DeviceWeights, config: ModelConfig, max_length: int, ops: DeviceOps) -> None:
        self.config = config
        self.ops = ops
        self.embedding, self.head = weights.embedding_and_head(config.tie_embeddings)
        self.norm = weights.tensor("model.norm.weight")
        self._cos, self._sin = (table.to(weights.device) for table in rope_tables(config, max_length))
        self.layers = [self._layer(weights, index) for index in range(config.num_layers)]

    def _layer(self, weights: DeviceWeights, index: int) -> GpuLayer:
        prefix, config = f"model.layers.{index}", self.config
        norm = f"{prefix}.self_attn.{{}}_norm.weight"
        return GpuLayer(
            input_norm=weights.tensor(f"{prefix}.input_layernorm.weight"),
            mlp_norm=weights.tensor(f"{prefix}.post_attention_layernorm.weight"),
            q_norm=weights.tensor(norm.format("q")) if config.qk_norm else None,
            k_norm=weights.tensor(norm.format("k")) if config.qk_norm else None,
            qkv=weights.stacked(index, ("q_proj", "k_proj", "v_proj")),
            o=weights.stacked(index, ("o_proj",)),
            gate_up=weights.stacked(index, ("gate_proj", "up_proj"), silu=True),
            down=weights.stacked(index, ("down_proj",)),
            window=config.sliding_window[index],
        )

    @torch.inference_mode()
    def forward(
        self,
        batch: GpuBatch,
        mode: LinearMode,
        previous: Tensor,
        slot_of: Tensor,
        pool: Callable[[Tensor, Tensor], None] = lambda x, residual: None,
    ) -> tuple[Tensor, Mapping[StateCapture, Tensor]]:
        """Logits [sampled rows, vocabulary] float32, and the states that the schedule captures.

        mode: of all linears and tokens
        previous: [n] int64, the tokens that the step before sampled
        slot_of: [n] int32, the row of the expert tables for each row of them, and for each place of a chosen one
        pool: takes x and the residual stream, [T, hidden], where the schedule pools; may write to `slot_of`
        """
        ids = torch.where(batch.token_ids < 0, previous[(-1 - batch.token_ids).clamp(min=0)], batch.token_ids)
        x = self.embedding[ids]
        residual = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        states: dict[StateCapture, Tensor] = {}
        unresolved, batch = batch, batch.with_slots(slot_of)
        for segment in batch.schedule.segments:
            states |= segment.begin(x, residual)
            if segment.pools:
                pool(x, residual)
                batch = unresolved.with_slots(slot_of)
            if not segment.num_rows:
                continue
            rows, part = segment.rows, batch.rows(segment.first_row, segment.stop_row)
            y = x[rows]
            for index in range(segment.first_layer, segment.stop_layer):
                y = self._run(self.layers[index], self.cache.layers[index], y, residual[rows], part, mode)
            x = y if len(y) == len(x) else x.index_copy(0, torch.arange(len(x), device=x.device)[rows], y)
        return self._logits(x[batch.sampled], residual[batch.sampled]), states

    @torch.inference_mode()
    def logits_of(self, states: Tensor) -> Tensor:
        """Logits [rows, vocabulary] float32 of states [rows, hidden] float32 that have left the last layer."""
        return self._logits(torch.zeros_like(states, dtype=self.embedding.dtype), states.clone())

    def _logits(self, x: Tensor, residual: Tensor) -> Tensor:
        x = self.ops.add_rms_norm(x, residual, self.norm, self.config.rms_norm_eps)
        return self.ops.linear(x, self.head, out_dtype=torch.float32)

    def _run(
        self,
        layer: GpuLayer,
        cache: LayerCache,
        x: Tensor,
        residual: Tensor,
        batch: GpuBatch,
        mode: LinearMode,
    ) -> Tensor:
        ops, config = self.ops, self.config
        h = ops.add_rms_norm(x, residual, layer.input_norm, config.rms_norm_eps)
        q, k, v = (
            layer.qkv(h, batch.slot, mode, batch.pages)
            .unflatten(1, (-1, config.head_dim))
            .split([config.num_heads, config.num_kv_heads, config.num_kv_heads], 1)
        )
        ops.rope_store(
            q,
            k,
            v,
            self._cos,
            self._sin,
            batch.position,
            batch.kv_index,
            cache.k,
            cache.v,
            layer.q_norm,
            layer.k_norm,
            config.rms_norm_eps,
        )
        y = self._attention(q, cache, batch, layer.window)
        x = layer.o(y.flatten(1), batch.slot, mode, batch.pages)
        h = ops.add_rms_norm(x, residual, layer.mlp_norm, config.rms_norm_eps)
        h = layer.gate_up(h, batch.slot, mode, batch.pages)
        return layer.down(h, batch.slot, mode, batch.pages)

    def _attention(self, q: Tensor, cache: LayerCache, batch: GpuBatch, window: int) -> Tensor:
        """[T, heads, head_size]: decoding rows and chunks of prompts each in their own kernel."""
        n, scale = batch.num_decode, self.config.head_dim**-0.5
        parts = []
        if n:
            parts.append(
                self.ops.decode_attention(
                    q[:n], cache.k, cache.v, batch.block_table[:n], batch.position[:n], scale, window
                )
            )
        if n < len(q):
            parts.append(
                self.ops.prefill_attention(
                    q[n:],
                    cache.k,
                    cache.v,
                    batch.block_table[n:],
                    batch.query_start,
                    batch.first_position,
                    scale,
                    window,
                    batch.max_query_len,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)
