"""Are the kernels of a GPU right, on random shapes, eager and replayed in a graph with new slots?"""

import argparse
import time
from collections.abc import Iterator

import torch

from zweave.engine.gpu.backend import Backend, backend_of

from ..harness.harness import ERROR_LIMITS, Outcome, Provider, check, row_error
from ..harness.report import Column, Report
from ..serving.gpu.devices import check_device
from .check_attention import attention_checks
from .check_case import CheckSource, KernelCheck
from .check_products import product_checks
from .check_rows import row_checks

# Matrices are small: roundings of a row of few outputs come to .006, while a component left out gives .02 or more.
LIMITS = ERROR_LIMITS | {torch.bfloat16: 1e-2}
COLUMNS = (
    Column("provider", "kernel"),
    Column("shape", "shape"),
    Column("error", "error", ".5f"),
    Column("limit", "limit", ".5f"),
)


@torch.inference_mode()
def run(args: argparse.Namespace) -> Report:
    start = time.perf_counter()
    check_device(args.device)
    backend, dtype = backend_of(args.device), getattr(torch, args.dtype)
    # What a kernel leaves out is NaN, not what lay there before.
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        outcomes: list[Outcome] = []
        for case in range(args.cases):
            if case and time.perf_counter() - start > args.stop_after:
                break
            outcomes += _checked(backend, dtype, args.seed + case, args.eager)
    finally:
        torch.use_deterministic_algorithms(before)
    # The worst of each kernel, and all that went wrong.
    worst = {outcome.provider.name: outcome for outcome in sorted(outcomes, key=_severity)}
    wrong = [outcome for outcome in outcomes if outcome.status != "ok"]
    shown = wrong + [outcome for outcome in worst.values() if outcome.status == "ok"]
    return Report(
        "gpu-check",
        f"{len(outcomes)} checks of kernels in {args.dtype}, the worst of each",
        COLUMNS,
        [outcome.row() | {"limit": outcome.provider.limit} for outcome in shown],
        notes=[f"{len(wrong)} of {len(outcomes)} checks went wrong."],
    )


def _checked(backend: Backend, dtype: torch.dtype, seed: int, eager: bool) -> Iterator[Outcome]:
    """The checks of all kernels, one after the other; a case's memory is free before the next is made."""
    source = CheckSource(backend, dtype, seed)
    for checks in (row_checks, product_checks, attention_checks):
        for case in checks(source):
            if not (eager and case.in_graph):
                yield check(_provider(case, dtype))


def _provider(case: KernelCheck, dtype: torch.dtype) -> Provider:
    return Provider(
        case.kernel,
        [case.result],
        lambda: row_error(case.result(), case.truth),
        0.0 if case.exact else LIMITS[dtype],
        labels={"shape": case.shape},
    )


def _severity(outcome: Outcome) -> float:
    return outcome.error if outcome.error is not None else float("inf")
