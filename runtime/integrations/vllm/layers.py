"""The layers that vLLM's LoRA plane puts around ours: an adapter's row is a row of scales."""

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

from .linear import ServedLinear
from .tokens import StepTokens


class SvfLayer:
    """What the layers below share. lora_a of an adapter is z [1, R], lora_b is empty."""

    kind: type[nn.Module]
    served: ServedLinear
    base_layer: Any

    @classmethod
    def can_replace_layer(cls, source_layer: nn.Module, *args: Any, **options: Any) -> bool:
        return type(source_layer) is cls.kind and hasattr(source_layer, "served")

    def create_lora_weights(self, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        self.lora_config = lora_config
        self.served = self.base_layer.served
        self.n_slices = len(self.served.parts)
        # vLLM takes the sizes of the adapters that it warms up with from these.
        self.lora_a_stacked = tuple(scale.unsqueeze(1) for scale in self.served.scales)
        self.lora_b_stacked = tuple(torch.empty(1, 1, 1, 1) for _ in self.served.parts)

    def reset_lora(self, index: int) -> None:
        self.served.write(index, [None] * self.n_slices)

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        rows: Sequence[Tensor | None] = lora_a if isinstance(lora_a, list) else [lora_a]
        self.served.write(index, [None if z is None else z[0] for z in rows])

    def set_mapping(self, punica_wrapper: Any) -> None:
        self.punica_wrapper = punica_wrapper
        self._tokens = StepTokens.of(punica_wrapper)

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if flat.is_cuda:
            y = self.served.factored(flat, self._slots(len(flat)), bias)
        else:
            y = self.served(flat, self._tokens(len(flat)), bias)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _slots(self, count: int) -> Tensor:
        """From the buffer that lasts, for a graph; padding in it may be anything."""
        index = self.punica_wrapper._token_lora_indices[:count]
        last = len(self.served.table) - 1
        return torch.where((index < 0) | (index > last), last, index).to(torch.int32)


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
    """Has vLLM ask these layers first, and load their adapters by our loader."""
    from .loader import use_our_loader

    if LAYERS[0] not in utils._all_lora_classes:
        utils._all_lora_classes = (*LAYERS, *utils._all_lora_classes)
    use_our_loader()
