"""The tensors of one step: the tokens of all its sequences, one row each."""

from dataclasses import dataclass

from torch import Tensor

from zweave.kernels import DecoderMetadata

from .layer_schedule import LayerSchedule


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model computes in one step.

    token_ids: [T] int64
    meta: slot, position and cache location of each token, and the block tables
    sampled: [n] int64, the rows whose logits are wanted
    schedule: which rows go through which layers
    """

    token_ids: Tensor
    meta: DecoderMetadata
    sampled: Tensor
    schedule: LayerSchedule
