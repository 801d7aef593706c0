"""The layers that vLLM's LoRA support wraps around our linears: an adapter is a row of scales."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.lora import utils
from vllm.lora.layers import (
    ColumnParallelLinearWithLoRA,
    MergedColumnParallelLinearWithLoRA,
    MergedQKVParallelLinearWithLoRA,
    ReplicatedLinearWithLoRA,
    RowParallelLinearWithLoRA,
)
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

from .linears import CpuLinear, DeviceLinear


class SvfLayer:
    """Base of the layers below. lora_a of an adapter is z [1, R], lora_b is empty."""

    kind: type[nn.Module]
    served: CpuLinear | DeviceLinear
    base_layer: Any

    @classmethod
    def can_replace_layer(cls, source_layer: nn.Module, *args: Any, **options: Any) -> bool:
        return type(source_layer) is cls.kind and hasattr(source_layer, "served")

    def create_lora_weights(self, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        self.lora_config = lora_config
        self.served = self.base_layer.served
        scales = self.served.tables.scales
        self.n_slices = len(scales)
        # vLLM reads the sizes of its warm-up adapters from these.
        self.lora_a_stacked = tuple(scale.unsqueeze(1) for scale in scales)
        self.lora_b_stacked = tuple(torch.empty(1, 1, 1, 1) for _ in scales)

    def reset_lora(self, index: int) -> None:
        self.served.write(index, [None] * self.n_slices)

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        parts: Sequence[Tensor | None] = lora_a if isinstance(lora_a, list) else [lora_a]
        self.served.write(index, [None if z is None else z[0] for z in parts])

    def set_mapping(self, punica_wrapper: Any) -> None:
        self.punica_wrapper = punica_wrapper
        self._step: Any = self.served.step_of(punica_wrapper)

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = self.served(flat, self._step, bias)
        return y.view(*x.shape[:-1], y.shape[-1])


class SvfColumnParallelLinear(SvfLayer, ColumnParallelLinearWithLoRA):
    kind = ColumnParallelLinear


class SvfMergedColumnParallelLinear(SvfLayer, MergedColumnParallelLinearWithLoRA):
    kind = MergedColumnParallelLinear


class SvfQKVParallelLinear(SvfLayer, MergedQKVParallelLinearWithLoRA):
    kind = QKVParallelLinear


class SvfRowParallelLinear(SvfLayer, RowParallelLinearWithLoRA):
    kind = RowParallelLinear


class SvfReplicatedLinear(SvfLayer, ReplicatedLinearWithLoRA):
    kind = ReplicatedLinear


LAYERS = (
    SvfColumnParallelLinear,
    SvfMergedColumnParallelLinear,
    SvfQKVParallelLinear,
    SvfRowParallelLinear,
    SvfReplicatedLinear,
)


def use_our_layers() -> None:
    """Puts these layers first in vLLM's list of LoRA layers, and installs our adapter loader."""
    from .loader import use_our_loader

    if LAYERS[0] not in utils._all_lora_classes:
        utils._all_lora_classes = (*LAYERS, *utils._all_lora_classes)
    use_our_loader()
