"""The machine's limits, timed in the same rounds as the providers: a neighbour that slows one slows both.

Reads stream a buffer far larger than the caches; nothing is written, for writes would cost bandwidth that a
product of few tokens does not spend. Several kinds of reads are tried and the fastest is the roof, as it is for the
arithmetic, whose candidates are products that keep every core busy, torch's and ours. On a CPU the overhead of
an op's call is timed too, by a product of next to no size: the smallest matrices cannot come nearer to a roof.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from zweave.kernels import empty_in_huge_pages, greedy, linear, pack

from .harness import Outcome, Provider, Run
from .machine import cache_bytes

Binding: TypeAlias = Literal["read", "arithmetic"]

READ = "roof read"
ARITHMETIC = "roof arithmetic"
CALL = "call"
CHUNK_BYTES = 64 << 20
# M, N, T of products that reach the peak; which of them does differs by processor and dtype.
PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 1024), (1536, 576, 512))


@dataclass(frozen=True, slots=True)
class Roofs:
    """The machine's limits.

    read: bytes a second.
    arithmetic: multiplications and additions a second.
    call: seconds of an empty call.
    """

    read: float
    arithmetic: float
    call: float = 0.0

    def seconds(self, moved: float, flops: float) -> float:
        """The least time that the work can take."""
        return max(moved / self.read, flops / self.arithmetic)

    def binding(self, moved: float, flops: float) -> Binding:
        """Which roof that time comes from."""
        return "read" if moved / self.read >= flops / self.arithmetic else "arithmetic"

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> "Roofs":
        """The fastest candidates among what was measured."""
        listed = [outcome for outcome in outcomes if outcome.seconds]

        def best(name: str, work: Callable[[Provider], float]) -> float:
            return max(work(o.provider) / o.seconds for o in listed if o.seconds and o.provider.name == name)

        calls = [o.seconds for o in listed if o.seconds and o.provider.name == CALL]
        return cls(
            best(READ, lambda p: p.moved), best(ARITHMETIC, lambda p: p.flops), min(calls, default=0.0)
        )


def is_roof(outcome: Outcome) -> bool:
    return outcome.provider.name in (READ, ARITHMETIC, CALL)


def roof_providers(dtype: torch.dtype, chunk_bytes: int = CHUNK_BYTES) -> list[Provider]:
    """Candidates for the CPU's roofs, to be measured beside the providers."""
    chunks = -(-8 * cache_bytes() // chunk_bytes)
    # In pages of 2 MiB, as packed weights are: reads of small pages are far slower under nested paging.
    buffer = empty_in_huge_pages((max(2, chunks) * chunk_bytes // 4,), torch.float32).fill_(1)
    pieces = buffer.split(chunk_bytes // 4)
    reads: dict[str, Callable[[Tensor], object]] = {
        "sum": lambda piece: piece.view(64, -1).sum(1),
        "amax": lambda piece: piece.view(1024, -1).amax(1),
        "greedy": lambda piece: greedy(piece.view(64, -1)),
    }
    providers = [
        _roof(READ, label, [partial(read, piece) for piece in pieces], moved=chunk_bytes)
        for label, read in reads.items()
    ]
    for M, N, T in PRODUCTS:
        x, w = torch.ones(T, N, dtype=dtype), torch.ones(M, N, dtype=dtype)
        flops, size = 2.0 * M * N * T, f"{M} x {N}, {T} tokens"
        providers.append(_roof(ARITHMETIC, f"F.linear {size}", [partial(F.linear, x, w)], flops=flops))
        providers.append(_roof(ARITHMETIC, f"linear {size}", [partial(linear, x, pack(w))], flops=flops))
    x, w = torch.ones(1, 16, dtype=dtype), torch.ones(16, 16, dtype=dtype)
    # Many in a row, as the small products are timed: the first ones find PyTorch's dispatch code evicted.
    return [*providers, _roof(CALL, "linear 16 x 16", [partial(linear, x, pack(w))] * 500)]


def cuda_roof_providers(dtype: torch.dtype, device: torch.device) -> list[Provider]:
    """The same for a GPU: the fastest of a copy, a change in place and a sum, and the best of cuBLAS.

    A copy counts read and written bytes. In a graph it may run on a copy engine, slower than a kernel that reads.
    """
    source = torch.ones(1 << 29, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    providers = [
        _roof(READ, "copy", [partial(target.copy_, source)], moved=2.0 * source.nbytes),
        _roof(READ, "neg", [target.neg_], moved=2.0 * target.nbytes),
        _roof(
            READ,
            "sum",
            [partial(torch.sum, source.view(torch.float32).view(4096, -1), 1)],
            moved=source.nbytes,
        ),
    ]
    for size in (4096, 8192):
        x = torch.randn(size, size, dtype=dtype, device=device)
        calls = [partial(F.linear, x, x)]
        providers.append(_roof(ARITHMETIC, f"F.linear {size} cubed", calls, flops=2.0 * size**3))
    return providers


def _roof(
    name: str, candidate: str, calls: Sequence[Run], moved: float = 0.0, flops: float = 0.0
) -> Provider:
    return Provider(name, calls, lambda: 0.0, 0.0, labels={"candidate": candidate}, moved=moved, flops=flops)


def roofline_keys(outcome: Outcome, roofs: Roofs) -> dict[str, object]:
    """gb_s, gflop_s, roof, roof_pct and net_pct of a JSON row; all but the roof's name None without a time."""
    moved, flops = outcome.provider.moved, outcome.provider.flops
    seconds = outcome.seconds
    return {
        "gb_s": None if seconds is None else moved / seconds / 1e9,
        "gflop_s": None if seconds is None else flops / seconds / 1e9,
        "roof": roofs.binding(moved, flops),
        "roof_pct": None if seconds is None else 100 * roofs.seconds(moved, flops) / seconds,
        "net_pct": None if seconds is None else 100 * roofs.seconds(moved, flops) / (seconds - roofs.call),
    }
