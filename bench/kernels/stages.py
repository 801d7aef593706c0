"""The products of a decoder's layer as the GPU engine launches them: q, k and v as one, o, gate and up as one, down."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zweave.checkpoint import ModelConfig
from zweave.kernels import DeviceOps, LinearMode, Stack, StackedLinear
from zweave.kernels.weight_stack import plain_parts

from ..harness.machine import cache_bytes
from ..serving.gpu.random_weights import RandomWeights

# The linears of each stage.
STAGES = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
# More would tell nothing new: the cache is flushed before a graph, and a graph takes each copy in turn.
MOST_COPIES = 64


@dataclass(frozen=True, slots=True)
class Cost:
    """moved: bytes that must move; flops: operations."""

    moved: float
    flops: float


@dataclass(frozen=True, slots=True)
class Stage:
    """Copies of the random weights of a stage, enough that each is out of the cache when its turn comes again."""

    name: str
    copies: Sequence[StackedLinear]

    @classmethod
    def of(
        cls,
        name: str,
        config: ModelConfig,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
        ops: DeviceOps,
        most_copies: int = MOST_COPIES,
    ) -> "Stage":
        """slots: rows of the tables, that of the base model included."""
        weights = RandomWeights(config, slots, dtype, device, ops)
        first = weights.stacked(0, STAGES[name], silu=name == "gate_up")
        assert isinstance(first.dense, Stack)
        count = min(most_copies, -(-4 * cache_bytes(device.type) // first.dense.whole.nbytes))
        others = [weights.stacked(0, STAGES[name], silu=first.silu) for _ in range(count - 1)]
        return cls(name, [first, *others])

    @property
    def inputs(self) -> int:
        """Numbers of a token that go in."""
        dense = self.copies[0].dense
        assert isinstance(dense, Stack)
        return dense.whole.shape[1]

    def cost(self, mode: LinearMode, tokens: int, experts: int) -> Cost:
        """Weights once, rows of the tables in use, and what each token reads and writes."""
        stack = self.copies[0]
        outputs = [u.shape[0] for u in stack.u]
        ranks = [u.shape[1] for u in (stack.u if mode == LinearMode.FACTORED else stack.leading.u)]
        elements, between = 0, 0
        if mode != LinearMode.FACTORED:
            elements += sum(outputs) * self.inputs
        if mode != LinearMode.DENSE:
            elements += sum(rank * (self.inputs + M) for rank, M in zip(ranks, outputs, strict=True))
            between = sum(ranks)
        written = outputs[0] if stack.silu else sum(outputs)
        assert isinstance(stack.dense, Stack)
        itemsize = stack.dense.whole.element_size()
        activations = tokens * (self.inputs + written + 2 * between)
        return Cost(
            (elements + activations) * itemsize + 4.0 * experts * between,
            2.0 * tokens * elements,
        )

    def truth(self, x: Tensor, slot: Tensor, mode: LinearMode) -> Tensor:
        """What the first copy gives in float64, [tokens, outputs]."""
        stack, wide = self.copies[0], x.double()
        assert isinstance(stack.dense, Stack) and isinstance(stack.vt, Stack)
        assert stack.scale is not None
        if mode == LinearMode.FACTORED:
            h = wide @ stack.vt.whole.double().T * stack.scale[slot.long()].double()
            y = _block_diagonal(h, plain_parts(stack.u, x.dtype, stack.ops))
        else:
            y = wide @ stack.dense.whole.double().T
        if mode == LinearMode.DELTA:
            vt, leading = stack.leading.values(x.dtype, stack.ops)
            h = wide @ torch.cat(vt).double().T * stack.delta[slot.long()].double()
            y += torch.where((slot != 0)[:, None], _block_diagonal(h, leading), 0)
        if stack.silu:
            gate, up = y.chunk(2, 1)
            return F.silu(gate) * up
        return y


def _block_diagonal(h: Tensor, u: Sequence[Tensor]) -> Tensor:
    parts = h.split([part.shape[1] for part in u], 1)
    return torch.cat([x @ part.double().T for x, part in zip(parts, u, strict=True)], 1)
