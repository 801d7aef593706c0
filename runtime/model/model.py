"""The decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3) over factored linears and a paged cache."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.kernels import (
    Decoder,
    DecoderConfig,
    DecoderMetadata,
    add_rms_norm,
    linear,
)

from ..checkpoint.model_config import ModelConfig
from ..checkpoint.rope_tables import rope_tables
from ..kv_cache.block_pool import KVCache
from .batch import Batch
from .layer_schedule import StateCapture
from .weights import Weights

# The last layer skips unsampled tokens if there are at least this many: for fewer, reading its weights takes the time
# either way.
MANY_UNSAMPLED = 64


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What a batch gives.

    logits: [sampled rows, vocabulary] float32
    states: of each capture, [rows, hidden] float32
    """

    logits: Tensor
    states: Mapping[StateCapture, Tensor]


class Model:
    """Computes a batch's keys and values into its cache and the logits of its sampled tokens."""

    def __init__(self, weights: Weights, config: ModelConfig, cache: KVCache, max_length: int) -> None:
        self.config = config
        is_tied = config.tie_embeddings
        self.head = weights.packed("model.embed_tokens.weight" if is_tied else "lm_head.weight")
        self.embedding = weights.embedding(self.head, is_tied)
        self.norm = weights.tensor("model.norm.weight")
        cos, sin = (table.to(weights.device) for table in rope_tables(config, max_length))
        self.decoder = Decoder(
            DecoderConfig(
                heads=config.num_heads,
                kv_heads=config.num_kv_heads,
                head_size=config.head_dim,
                scale=config.head_dim**-0.5,
                eps=config.rms_norm_eps,
                cos=cos,
                sin=sin,
            ),
            [weights.layer(config, layer, caches) for layer, caches in enumerate(cache.layers)],
        )

    @torch.inference_mode()
    def forward(self, batch: Batch) -> ModelOutput:
        """Logits of the batch's sampled rows, and the states that its schedule captures."""
        x = self.embedding[batch.token_ids]
        residual = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        states: dict[StateCapture, Tensor] = {}
        *lower, top = batch.schedule.segments
        for segment in lower:
            states |= segment.begin(x, residual)
            if segment.num_rows:
                rows, meta = segment.rows, batch.meta.rows(segment.first_row, segment.stop_row)
                x[rows] = self.decoder(x[rows], residual[rows], meta, segment.first_layer, segment.stop_layer)
        states |= top.begin(x, residual)
        meta = batch.meta.rows(top.first_row, top.stop_row)
        x, residual = self._sampled_only(
            x[top.rows], residual[top.rows], meta, batch.sampled, top.first_layer
        )
        return ModelOutput(self._logits(x, residual), states)

    @torch.inference_mode()
    def logits_of(self, states: Tensor) -> Tensor:
        """Logits [rows, vocabulary] float32 of states [rows, hidden] float32 that have left the last layer."""
        return self._logits(torch.zeros_like(states, dtype=self.embedding.dtype), states.clone())

    def _logits(self, x: Tensor, residual: Tensor) -> Tensor:
        x = add_rms_norm(x, residual, self.norm, self.config.rms_norm_eps)
        return linear(x, self.head, out_dtype=torch.float32)

    def _sampled_only(
        self, x: Tensor, residual: Tensor, meta: DecoderMetadata, sampled: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        """Computes the layers from `first` to the top; returns x and residual of the sampled rows.

        If many rows are not sampled, the last layer computes only keys and values for those.
        """
        last = self.config.num_layers - 1
        if first > last or not len(x):
            return x[sampled], residual[sampled]
        if len(x) - len(sampled) < MANY_UNSAMPLED:
            x = self.decoder(x, residual, meta, first)
            return x[sampled], residual[sampled]
        if first < last:
            x = self.decoder(x, residual, meta, first, last)
        is_other = torch.ones(len(x), dtype=torch.bool, device=x.device)
        is_other[sampled] = False
        others = is_other.nonzero().flatten()
        self.decoder.store_keys(x[others], residual[others], meta.at(others), last)
        x, residual = x[sampled], residual[sampled]
        if len(sampled):
            x = self.decoder(x, residual, meta.at(sampled), last)
        return x, residual
