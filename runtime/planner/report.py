"""Predicted and measured cost of every mode of a model's matrices, and what a plan chooses."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zweave.kernels import LinearMode, Packed, linear, pack, quantize, svf_delta_linear, svf_linear

from .cost_model import CostModel, on_grid
from .plan import MatrixPlan

# Enough weights that each comes from memory, not from a cache.
ROTATED_BYTES = 96 << 20


@dataclass(frozen=True, slots=True)
class ModeCost:
    """The cost of computing a matrix in one mode.

    mode: lower-case name of the `LinearMode`.
    components: of the delta, or of the factors; 0 for other modes.
    predicted_us: microseconds by the cost model.
    measured_us: microseconds measured, None if not measured.
    chosen: whether the batch's tokens use it: base tokens, or those of unrestricted experts if there are any.
    """

    mode: str
    components: int
    predicted_us: float
    measured_us: float | None
    chosen: bool


def mode_costs(
    matrix: MatrixPlan, tokens: int, experts: int, costs: CostModel, dtype: torch.dtype
) -> list[ModeCost]:
    """The cost of each mode of a matrix for a number of tokens, each mode alone, by the ops on random weights.

    experts: number of unrestricted experts that share the batch, 0 for the base model alone.
    """
    chosen = matrix.mode_of(matrix.rank if experts else 0)
    measured = _measure(_calls(matrix, tokens, max(1, experts), dtype))
    rows = []
    for mode, seconds in measured.items():
        components = {LinearMode.DELTA: matrix.delta_rank, LinearMode.FACTORED: matrix.rank}.get(mode, 0)
        product = costs.seconds(mode, matrix, tokens)
        predicted = product + costs.call_seconds
        rows.append(ModeCost(mode.name.lower(), components, 1e6 * predicted, 1e6 * seconds, mode == chosen))
    return rows


@torch.inference_mode()
def _calls(
    matrix: MatrixPlan, tokens: int, experts: int, dtype: torch.dtype
) -> dict[LinearMode, list[Callable[[], object]]]:
    """For each mode the same product with one set of weights after the other."""
    M, N = matrix.shape
    copies = max(2, ROTATED_BYTES // (M * N * dtype.itemsize))
    random = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=random) / shape[1] ** 0.5).to(dtype)

    x = torch.randn(tokens, N, generator=random).to(dtype)
    slot = 1 + torch.arange(tokens, dtype=torch.int32) % experts
    scale = torch.ones(experts + 1, matrix.rank)
    dense = [on_grid(weight(M, N), matrix.grid) for _ in range(copies)]
    merged = [pack(weight(M, N)) for _ in range(copies)] if matrix.grid else dense
    on_u, on_vt = matrix.factor_grids or (None, None)
    factors = [
        (on_grid(weight(matrix.rank, N), on_vt), on_grid(weight(M, matrix.rank), on_u)) for _ in range(copies)
    ]
    calls: dict[LinearMode, list[Callable[[], object]]] = {
        LinearMode.DENSE: [partial(linear, x, w) for w in dense],
        LinearMode.FACTORED: [partial(svf_linear, x, vt, u, scale, slot) for vt, u in factors],
        LinearMode.MERGED: [partial(linear, x, w) for w in merged],
    }
    if matrix.delta_rank:
        delta, kept = torch.ones(experts + 1, matrix.delta_rank), matrix.delta_rank

        def factor(*shape: int) -> Packed:
            plain = weight(*shape)
            return pack(quantize(plain, matrix.format) if matrix.format else plain)

        parts = [(factor(kept, N), factor(M, kept)) for _ in range(copies)]
        calls[LinearMode.DELTA] = [
            partial(svf_delta_linear, x, w, vt, u, delta, slot)
            for w, (vt, u) in zip(dense, parts, strict=True)
        ]
    return dict(sorted(calls.items()))


@torch.inference_mode()
def _measure(
    calls: Mapping[LinearMode, list[Callable[[], object]]], rounds: int = 7
) -> dict[LinearMode, float]:
    """Seconds of a call in each mode: medians of rounds in which the modes take turns, each over all its weights."""
    seconds: dict[LinearMode, list[float]] = {mode: [] for mode in calls}
    for index in range(rounds + 1):
        for mode, listed in calls.items():
            start = time.perf_counter()
            for call in listed:
                call()
            if index:
                seconds[mode].append((time.perf_counter() - start) / len(listed))
    return {mode: statistics.median(values) for mode, values in seconds.items()}
