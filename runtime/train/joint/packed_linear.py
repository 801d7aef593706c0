"""A frozen linear whose rows do not know each other, and LoRAs on top of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zweave.kernels.train.frozen_linear import FrozenWeight, frozen_linear

from ...checkpoint.module_name import LINEARS, linear_of, replace_module


class PackedLinear(nn.Linear):
    """Semantics: y = W x + b, with a gradient for x alone; a row has the same bits in every batch.

    It shares the tensors of the linear that it stands for.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.packed = FrozenWeight.of(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.packed, self.bias)


def pack_linears(model: nn.Module) -> None:
    """Puts a PackedLinear in the place of each linear that adapters act on."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and linear_of(name) in LINEARS:
            replace_module(model, name, PackedLinear(module))


def packed_base(module: nn.Module) -> PackedLinear | None:
    """What PEFT's LoRA layer acts on, if that is packed and the adapter is on."""
    base = getattr(module, "base_layer", None)
    return base if isinstance(base, PackedLinear) and not module.disable_adapters else None


def lora_rows(layers: Sequence[Any], x: Tensor, rows: Sequence[int]) -> Tensor:
    """Semantics: y = W x + s B (A x), as PEFT's layers compute it; W once for all, A and B of each for its rows."""
    base: Tensor = layers[0].base_layer(x)
    pieces = zip(layers, x.split(rows), strict=True)
    return (base + torch.cat([_update(layer, piece) for layer, piece in pieces])).to(base.dtype)


def _update(layer: Any, x: Tensor) -> Tensor:
    (adapter,) = layer.active_adapters
    down, up = layer.lora_A[adapter], layer.lora_B[adapter]
    update: Tensor = up(down(x.to(down.weight.dtype))) * layer.scaling[adapter]
    return update
