"""Random weights in the place of a checkpoint's and its decomposition's, made where they are used."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zweave.checkpoint import ModelConfig
from zweave.checkpoint.module_name import module_name
from zweave.kernels import DeltaFactors, DeviceOps, Stack, StackedLinear, together
from zweave.planner.planner import HOSTED_DELTA_SHARE


class RandomWeights:
    """Has what a `GpuModel` asks of `GpuWeights`; W is not the product of U and V, since only their sizes matter.

    slots: rows of the tables, that of the base model included; z of the others lie between .5 and 1.5
    """

    def __init__(
        self, config: ModelConfig, slots: int, dtype: torch.dtype, device: torch.device, ops: DeviceOps
    ) -> None:
        self.dtype = dtype
        self.device = device
        self._shapes = config.tensor_shapes()
        self._slots = slots
        self._ops = ops
        self._generator = torch.Generator(device).manual_seed(0)

    def tensor(self, name: str) -> Tensor:
        shape = self._shapes[name]
        return self._normal(*shape) if len(shape) > 1 else torch.ones(shape, dtype=self.dtype).to(self.device)

    def embedding_and_head(self, is_tied: bool) -> tuple[Tensor, Tensor]:
        embedding = self.tensor("model.embed_tokens.weight")
        return embedding, embedding if is_tied else self.tensor("lm_head.weight")

    def stacked(self, layer: int, linears: Sequence[str], silu: bool = False) -> StackedLinear:
        """Linears of a layer that have one input, with all that any mode needs."""
        shapes = [self._shapes[f"{module_name(layer, linear)}.weight"] for linear in linears]
        ranks = [min(shape) for shape in shapes]
        delta_ranks = [max(1, rank // HOSTED_DELTA_SHARE) for rank in ranks]
        inputs = shapes[0][1]
        delta = self._uniform(sum(delta_ranks)) - 1
        delta[0] = 0
        vt = self._stack(ranks, inputs)
        u = together([self._normal(shape[0], rank) for shape, rank in zip(shapes, ranks, strict=True)])
        return StackedLinear(
            ops=self._ops,
            dense=self._stack([shape[0] for shape in shapes], inputs),
            vt=vt,
            u=u,
            scale=self._uniform(sum(ranks)),
            leading=DeltaFactors.leading(vt.parts, u, delta_ranks),
            delta=delta,
            bias=None,
            silu=silu,
        )

    def _stack(self, rows: Sequence[int], columns: int) -> Stack:
        whole = self._normal(sum(rows), columns)
        return Stack(whole, whole.split(list(rows)))

    def _normal(self, rows: int, columns: int) -> Tensor:
        """About as large as trained weights."""
        values = torch.randn(rows, columns, dtype=self.dtype, device=self.device, generator=self._generator)
        return values.mul_(columns**-0.5)

    def _uniform(self, columns: int) -> Tensor:
        return torch.rand(self._slots, columns, device=self.device, generator=self._generator) + 0.5
