"""The decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3) over factored linears and a paged cache."""

import torch
from torch import Tensor

from zweave.kernels import (
    Decoder,
    DecoderBatch,
    DecoderConfig,
    add_rms_norm,
    linear,
    pack,
)

from ..checkpoint.model_config import ModelConfig
from ..checkpoint.rope_tables import rope_tables
from ..kv_cache.block_pool import KVCache
from .batch import Batch, Reading
from .weights import Weights

# Tokens of a step whose logits nobody wants, from which on the last layer leaves them out: for fewer the weights
# are read all the same.
MANY_UNSAMPLED = 64


class Model:
    """Computes a batch's keys and values into its cache and the logits of its sampled tokens."""

    def __init__(self, weights: Weights, config: ModelConfig, cache: KVCache, max_length: int) -> None:
        self.config = config
        self.embedding = weights.tensor("model.embed_tokens.weight")
        head = self.embedding if config.tie_embeddings else weights.tensor("lm_head.weight")
        self.head = pack(head)
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

    def __call__(self, batch: Batch) -> Tensor:
        """Returns float32 logits [len(batch.sampled), vocabulary]."""
        return self.read(batch)[0]

    @torch.inference_mode()
    def read(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Logits as above, and the states of each of the batch's readings, [tokens, hidden] float32.

        Rows that enter at a layer are left out of the layers below it, rows that end at one of those above.
        """
        # Of the rows of the batch, x has those from `first` to before `last`.
        first, last = max([entry.last for entry in batch.entries], default=0), len(batch.tokens)
        x = self.embedding[batch.tokens[first:]]
        residual = torch.zeros((last, x.shape[1]), dtype=torch.float32, device=x.device)
        states: dict[Reading, Tensor] = {}
        computed = 0
        for layer in batch.stops:
            if len(x):
                x = self.decoder(x, residual[first:last], batch.places.rows(first, last), computed, layer)
            computed = layer
            for entry in reversed(batch.entries):
                if entry.layer == layer:
                    residual[entry.first : entry.last] = entry.states
                    x = torch.cat([x.new_zeros(entry.states.shape), x])
                    first = entry.first
            for reading in batch.readings:
                if reading.layer == layer:
                    rows = slice(reading.first, reading.last)
                    states[reading] = residual[rows] + x[reading.first - first : reading.last - first].float()
            last = min([exit.first for exit in batch.exits if exit.layer == layer], default=last)
            x = x[: last - first]
        places = batch.places.rows(0, last)
        x, residual = self._sampled_only(x, residual[:last], places, batch.sampled, computed)
        x = add_rms_norm(x, residual, self.norm, self.config.rms_norm_eps)
        return linear(x, self.head, out_dtype=torch.float32), [states[r] for r in batch.readings]

    def _sampled_only(
        self, x: Tensor, residual: Tensor, places: DecoderBatch, sampled: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        """What the layers from `first` on give for the sampled tokens.

        Of the others, if they are many, the last layer computes keys and values alone.
        """
        last = self.config.num_layers - 1
        if first > last or not len(x):
            return x[sampled], residual[sampled]
        if len(x) - len(sampled) < MANY_UNSAMPLED:
            x = self.decoder(x, residual, places, first)
            return x[sampled], residual[sampled]
        if first < last:
            x = self.decoder(x, residual, places, first, last)
        is_other = torch.ones(len(x), dtype=torch.bool, device=x.device)
        is_other[sampled] = False
        others = is_other.nonzero().flatten()
        self.decoder.store_keys(x[others], residual[others], places.at(others), last)
        x, residual = x[sampled], residual[sampled]
        if len(sampled):
            x = self.decoder(x, residual, places.at(sampled), last)
        return x, residual
