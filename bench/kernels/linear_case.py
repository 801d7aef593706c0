"""Operands of the linear bench: the weights of a shape, copies of them, and the float64 truth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from ..harness.machine import cache_bytes
from .shapes import Shape

LORA_RANK = 16
# Rows of a weight that are float64 at once; all of them would need gigabytes.
TRUTH_ROWS = 4096
T_ = TypeVar("T_")


@dataclass(frozen=True)
class Operands:
    """Random weights of a shape, about as large as trained ones, and inputs for up to `tokens` tokens.

    x [T, N]; w [M, N]; vt [R, N]; u [M, R]; scale [E, R]; delta [E + 1, K] with a row 0 of zeros; a [E, r, N] and
    b [E, M, r] of a LoRA of rank 16. Token t is under expert t mod E of the E that a measurement asks for.
    """

    shape: Shape
    tokens: int
    experts: int
    dtype: torch.dtype
    device: str = "cpu"
    seed: int = 0

    @property
    def kept(self) -> int:
        """Components of a leading delta."""
        return max(1, self.shape.rank // 8)

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed)

    def _normal(self, *size: int, std: float = 1.0) -> Tensor:
        values = torch.randn(size, generator=self._generator, device=self.device)
        return values.mul_(std).to(self.dtype)

    @cached_property
    def x(self) -> Tensor:
        return self._normal(self.tokens, self.shape.N)

    @cached_property
    def w(self) -> Tensor:
        return self._normal(self.shape.M, self.shape.N, std=self.shape.N**-0.5)

    @cached_property
    def vt(self) -> Tensor:
        return self._normal(self.shape.rank, self.shape.N, std=self.shape.N**-0.5)

    @cached_property
    def u(self) -> Tensor:
        return self._normal(self.shape.M, self.shape.rank, std=self.shape.rank**-0.5)

    @cached_property
    def scale(self) -> Tensor:
        size = (self.experts, self.shape.rank)
        return torch.rand(size, generator=self._generator, device=self.device) + 0.5

    @cached_property
    def delta(self) -> Tensor:
        delta = torch.randn(self.experts + 1, self.kept, generator=self._generator, device=self.device)
        delta[0] = 0
        return delta

    @cached_property
    def lora_a(self) -> Tensor:
        return self._normal(self.experts, LORA_RANK, self.shape.N, std=self.shape.N**-0.5)

    @cached_property
    def lora_b(self) -> Tensor:
        return self._normal(self.experts, self.shape.M, LORA_RANK, std=LORA_RANK**-0.5)

    def rotated(self, make: Callable[[], T_], size: int) -> list[T_]:
        """Copies of a form's weights, enough that each is out of the cache when its turn comes again."""
        return rotated(make, size, self.device)

    def slot(self, tokens: int, experts: int, first: int = 0) -> Tensor:
        """int32 [tokens]: token t under expert t mod E, numbered from `first`."""
        return torch.arange(tokens, dtype=torch.int32, device=self.device) % experts + first

    def product(self, weight: Tensor, x: Tensor) -> Tensor:
        """x weight^T in float64, a part of the outputs at a time."""
        return torch.cat([x.double() @ rows.double().T for rows in weight.split(TRUTH_ROWS)], dim=1)

    @cached_property
    def dense_truth(self) -> Tensor:
        return self.product(self.w, self.x)

    @cached_property
    def projected_truth(self) -> Tensor:
        return self.product(self.vt, self.x)

    def factored_truth(self, experts: int) -> Tensor:
        rows = self.scale[self.slot(self.tokens, experts).long()]
        return self.product(self.u, self.projected_truth * rows)

    def delta_truth(self, experts: int) -> Tensor:
        rows = self.delta[self.slot(self.tokens, experts, first=1).long()]
        projected = self.projected_truth[:, : self.kept] * rows
        return self.dense_truth + self.product(self.u[:, : self.kept], projected)

    def lora_truth(self, experts: int) -> Tensor:
        y = self.dense_truth.clone()
        slot = self.slot(self.tokens, experts)
        for expert in range(min(experts, self.tokens)):
            rows = (slot == expert).nonzero().flatten()
            y[rows] += self.product(self.lora_b[expert], self.product(self.lora_a[expert], self.x[rows]))
        return y


def rotated(make: Callable[[], T_], size: int, device: str = "cpu") -> list[T_]:
    """Copies of weights of `size` bytes, as many as four times the largest cache holds."""
    return [make() for _ in range(max(1, -(-4 * cache_bytes(device) // max(size, 1))))]
