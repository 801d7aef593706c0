"""Mean hidden states of the layers' inputs: what a cheap classifier looks at."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zweave.batch import Batch
from zweave.model import Model


@torch.inference_mode()
def pooled_states(model: Model, batch: Batch, counts: Sequence[int], layers: Sequence[int]) -> Tensor:
    """Mean over each sequence's tokens of the state that enters each layer: [layers, sequences, hidden] float32.

    batch: whole sequences, of counts[i] tokens each. layers: from 1 (what the first layer gives) to the model's
    number of layers, in any order; those above the last one asked for are not computed.
    """
    x = model.embedding[batch.tokens]
    residual = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    means: dict[int, Tensor] = {}
    computed = 0
    for layer in sorted(set(layers)):
        x = model.decoder(x, residual, batch.places, computed, layer)
        computed = layer
        state = residual + x.float()
        means[layer] = torch.stack([part.mean(dim=0) for part in state.split(list(counts))])
    return torch.stack([means[layer] for layer in layers])
