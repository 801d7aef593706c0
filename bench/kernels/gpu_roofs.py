"""What can this GPU do at most, and what does a launch cost?

Imports nothing that has to be built: `python -c "from bench.kernels.gpu_roofs import main; main()"` measures while the
extension is compiled.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..harness.graph_clock import graph_clocks, plain_graph
from ..harness.harness import ERROR_LIMITS, Outcome, Pace, Provider, WallClock, measure, row_error
from ..harness.report import Column, Report, Row, print_report

TOKENS = (64, 512, 2048, 8192)
# A chain of kernels in a graph.
LAUNCHES = 256
COLUMNS = (
    Column("provider", "provider"),
    Column("T", "T", "d"),
    Column("seconds", "us", ".2f", 1e6),
    Column("gb_s", "GB/s", ".0f"),
    Column("gflop_s", "GFLOP/s", ".0f"),
)


@dataclass(frozen=True, slots=True)
class Probes:
    """What is measured, and how large.

    sums: y[i] = sum of row i of x, by kernels that read.
    count: x += 1 for x [1], as a dependent launch or the usual way.
    read: [rows, numbers of a program] that are summed.
    matrix: outputs and inputs of the product.
    """

    sums: Mapping[str, Callable[[Tensor, Tensor], object]]
    count: Callable[[Tensor, bool], object]
    read: tuple[int, int]
    matrix: tuple[int, int]


def _torch_sum(x: Tensor, y: Tensor) -> None:
    torch.sum(x, 1, out=y)


def _probes(device: str) -> Probes:
    if device != "cuda":
        return Probes({"read, torch.sum": _torch_sum}, lambda x, dependent: x.add_(1), (64, 4096), (96, 64))
    from ..harness.cuda_roofs import READ_BYTES
    from ..harness.gpu_probes import READ_BY_PROGRAM, count_triton, sum_triton

    sums = {"read, Triton sum": sum_triton, "read, torch.sum": _torch_sum}
    return Probes(sums, count_triton, (READ_BYTES // 4 // READ_BY_PROGRAM, READ_BY_PROGRAM), (14336, 4096))


def run(args: argparse.Namespace) -> Report:
    from ..harness.options import pace
    from ..serving.gpu.devices import check_device, notes_of

    check_device(args.device)
    return report(args.device, args.tokens, pace(args), notes_of(args.device))


@torch.inference_mode()
def report(device: str, tokens: Sequence[int], pace: Pace, notes: Sequence[str] = ()) -> Report:
    on_gpu = device == "cuda"
    dependent = not on_gpu or torch.cuda.get_device_capability() >= (9, 0)
    providers = _providers(_probes(device), "cuda" if on_gpu else "cpu", tokens, dependent)
    outcomes = measure(providers, pace, graph_clocks(plain_graph) if on_gpu else WallClock)
    if not dependent:
        notes = [*notes, "Left out dependent launches: they need sm_90 or newer."]
    return Report(
        "gpu-roofs", "What the device can do at most", COLUMNS, list(map(_row, outcomes)), notes=notes
    )


def _providers(probes: Probes, device: str, tokens: Sequence[int], dependent: bool) -> list[Provider]:
    x = torch.ones(probes.read, device=device)
    y = torch.empty(len(x), device=device)
    found = [
        Provider(name, [partial(sum_, x, y)], partial(_sum_error, sum_, x, y), 1e-3, moved=float(x.nbytes))
        for name, sum_ in probes.sums.items()
    ]
    M, N = probes.matrix
    weight = torch.randn(M, N, dtype=torch.bfloat16, device=device).mul_(N**-0.5)
    # Together beyond any cache.
    copies = [weight, *(weight.clone() for _ in range(3))]
    for T in tokens:
        inputs = torch.randn(T, N, dtype=torch.bfloat16, device=device)
        found.append(
            Provider(
                "cuBLAS",
                [partial(F.linear, inputs, copy) for copy in copies],
                partial(_product_error, inputs, weight),
                ERROR_LIMITS[torch.bfloat16],
                labels={"T": T, "M": M, "N": N},
                moved=2.0 * (M * N + T * (M + N)),
                flops=2.0 * T * M * N,
            )
        )
    for name, is_dependent in (("launch", False), ("dependent launch", True)):
        if is_dependent and not dependent:
            continue
        counter = torch.zeros(1, device=device)
        launch = partial(probes.count, counter, is_dependent)
        found.append(Provider(name, [launch] * LAUNCHES, partial(_count_error, launch, counter), 0.0))
    return found


def _sum_error(sum_: Callable[[Tensor, Tensor], object], x: Tensor, y: Tensor) -> float:
    sum_(x, y)
    return row_error(y, x.sum(1, dtype=torch.float64))


def _product_error(x: Tensor, weight: Tensor) -> float:
    rows = slice(0, 16)
    return row_error(F.linear(x, weight)[rows], x[rows].double() @ weight.double().T)


def _count_error(launch: Callable[[], object], counter: Tensor) -> float:
    before = counter.item()
    for _ in range(3):
        launch()
    return abs(counter.item() - before - 3)


def _row(outcome: Outcome) -> Row:
    moved, flops, seconds = outcome.provider.moved, outcome.provider.flops, outcome.seconds
    return outcome.row() | {
        "gb_s": moved / seconds / 1e9 if seconds and moved else None,
        "gflop_s": flops / seconds / 1e9 if seconds and flops else None,
    }


def main() -> int:
    """What a machine measures where nothing is built yet."""
    if not torch.cuda.is_available():
        print("gpu-roofs: no CUDA device is available to this torch", file=sys.stderr)
        return 1
    return print_report(report("cuda", TOKENS, Pace(rounds=20, seconds=1.0)))
