"""What the checks of GPU kernels share: random sizes and numbers, and a kernel's result beside the truth."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zweave.engine.gpu.backend import Backend


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """A kernel on one shape.

    shape: as tables show it.
    result: of the kernel, rows of numbers.
    truth: float64.
    exact: whether the result must be the truth to the last bit.
    in_graph: whether the result is that of a graph.
    """

    kernel: str
    shape: str
    result: Callable[[], Tensor]
    truth: Tensor
    exact: bool = False
    in_graph: bool = False


@dataclass(slots=True)
class CheckSource:
    """Random sizes and numbers on the device of a backend.

    dtype: of activations and weights.
    """

    backend: Backend
    dtype: torch.dtype
    seed: int
    _sizes: random.Random = field(init=False)
    _numbers: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._sizes = random.Random(self.seed)
        self._numbers = torch.Generator(self.device).manual_seed(self.seed)

    @property
    def device(self) -> torch.device:
        return self.backend.device

    def size(self, *choices: int) -> int:
        """One of them."""
        return self._sizes.choice(choices)

    def between(self, low: int, high: int) -> int:
        """Small ones are as likely as large ones."""
        return round(low * (high / low) ** self._sizes.random())

    def normal(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(size, generator=self._numbers, device=self.device)
        return values.to(dtype or self.dtype)

    def whole(self, low: int, high: int, count: int) -> Tensor:
        """[count] int32 of at least low, below high."""
        return torch.randint(low, high, (count,), generator=self._numbers, device=self.device).int()


def replayed(backend: Backend, run: Callable[[], Tensor], change: Callable[[], object]) -> Tensor:
    """What a graph of a run gives once its inputs have changed."""
    found: list[Tensor] = []
    graph = backend.capture(lambda: found.append(run()))
    # As it is, captured and replayed.
    for _ in range(2):
        graph()
    change()
    graph()
    return found[-1]
