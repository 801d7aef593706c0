"""Predicted and measured cost of every way through a model's matrices, and what a plan chooses."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zweave.kernels import Packed, Way, linear, pack, quantize, svf_delta_linear, svf_linear

from .cost_model import CostModel
from .plan import MatrixPlan

# Enough weights that each comes from memory, not from a cache.
ROTATED_BYTES = 96 << 20


@dataclass(frozen=True, slots=True)
class WayCost:
    """Microseconds of a way, predicted and measured (None: not measured); chosen: by the base or experts."""

    way: str
    components: int
    predicted_us: float
    measured_us: float | None
    chosen: bool


def way_costs(
    matrix: MatrixPlan, tokens: int, experts: int, costs: CostModel, dtype: torch.dtype
) -> list[WayCost]:
    """The ways of one matrix for so many tokens, each alone; measured by the ops on random weights.

    experts: how many without limits share the batch, 0 for the base alone.
    """
    chosen = matrix.way(matrix.rank if experts else 0)
    measured = _measure(_calls(matrix, tokens, max(1, experts), dtype))
    rows = []
    for way, seconds in measured.items():
        components = {Way.DELTA: matrix.leading, Way.FACTORED: matrix.rank}.get(way, 0)
        predicted = costs.way(way, matrix.shape, tokens, components, matrix.format) + costs.call_seconds
        rows.append(WayCost(way.name.lower(), components, 1e6 * predicted, 1e6 * seconds, way == chosen))
    return rows


@torch.inference_mode()
def _calls(
    matrix: MatrixPlan, tokens: int, experts: int, dtype: torch.dtype
) -> dict[Way, list[Callable[[], object]]]:
    """Way -> the same product with one set of weights after the other."""
    M, N = matrix.shape
    copies = max(2, ROTATED_BYTES // (M * N * dtype.itemsize))
    random = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=random) / shape[1] ** 0.5).to(dtype)

    x = torch.randn(tokens, N, generator=random).to(dtype)
    slot = 1 + torch.arange(tokens, dtype=torch.int32) % experts
    scale = torch.ones(experts + 1, matrix.rank)
    dense = [pack(weight(M, N)) for _ in range(copies)]
    factors = [(pack(weight(matrix.rank, N)), pack(weight(M, matrix.rank))) for _ in range(copies)]
    calls: dict[Way, list[Callable[[], object]]] = {
        Way.DENSE: [partial(linear, x, w) for w in dense],
        Way.FACTORED: [partial(svf_linear, x, vt, u, scale, slot) for vt, u in factors],
        Way.MERGED: [partial(linear, x, w) for w in dense],
    }
    if matrix.leading:
        delta, kept = torch.ones(experts + 1, matrix.leading), matrix.leading

        def factor(*shape: int) -> Packed:
            plain = weight(*shape)
            return pack(quantize(plain, matrix.format) if matrix.format else plain)

        parts = [(factor(kept, N), factor(M, kept)) for _ in range(copies)]
        calls[Way.DELTA] = [
            partial(svf_delta_linear, x, w, vt, u, delta, slot)
            for w, (vt, u) in zip(dense, parts, strict=True)
        ]
    return dict(sorted(calls.items()))


@torch.inference_mode()
def _measure(calls: Mapping[Way, list[Callable[[], object]]], rounds: int = 7) -> dict[Way, float]:
    """Seconds a call by way: medians of rounds in which the ways take turns, each over all its weights."""
    seconds: dict[Way, list[float]] = {way: [] for way in calls}
    for index in range(rounds + 1):
        for way, listed in calls.items():
            start = time.perf_counter()
            for call in listed:
                call()
            if index:
                seconds[way].append((time.perf_counter() - start) / len(listed))
    return {way: statistics.median(values) for way, values in seconds.items()}
