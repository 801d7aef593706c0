"""Why are the slowest kernels slow?"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from zweave.errors import ZweaveError

from ..harness.report import Column, Report, Row
from ..harness.results import ResultRow, number, read_results
from .ncu import error_of, launches_of, ncu_command, ncu_path

LAUNCHES = 4
# Tokens up to which a product is profiled: beyond them PyTorch's serve.
MOST_TOKENS = 128
COLUMNS = (
    Column("provider", "of"),
    Column("kernel", "kernel"),
    Column("roof_pct", "% of the roof", ".0f"),
    Column("dram_pct", "DRAM %", ".0f"),
    Column("l2_pct", "L2 %", ".0f"),
    Column("sm_pct", "SM %", ".0f"),
    Column("warps_pct", "warps %", ".0f"),
    Column("stall", "warps that wait, an instruction"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """What is profiled.

    name: as the table shows it.
    kernels: a regular expression for their names.
    bench: arguments of `zweave bench` that launch them and check their output.
    roof_pct: what was measured.
    """

    name: str
    kernels: str
    bench: tuple[str, ...]
    roof_pct: float


def run(args: argparse.Namespace) -> Report:
    targets = slowest(read_results(args.results), args.kernels)
    if not targets:
        raise ZweaveError(f"{args.results} has no rows of gpu-products or gpu-attention to choose from")
    ncu = ncu_path()
    rows = [row for target in targets for row in _profiled(ncu, target, args.limit)]
    return Report("gpu-profile", "The kernels that are furthest from their roof", COLUMNS, rows)


def slowest(results: Sequence[ResultRow], count: int) -> list[Target]:
    """Our kernels that reach the least share of their roof; of one stage or kind of attention and mode only one."""
    found: dict[str, Target] = {}
    candidates = [target for target in map(_target, results) if target is not None]
    for key, target in sorted(candidates, key=lambda candidate: candidate[1].roof_pct):
        found.setdefault(key, target)
    return list(found.values())[:count]


def _target(result: ResultRow) -> tuple[str, Target] | None:
    """The target of a row and what it is one of."""
    row, roof = result.row, number(result.row, "roof_pct")
    provider = str(row.get("provider"))
    if not roof or row.get("status") != "ok":
        return None
    if result.bench == "gpu-attention" and provider == "zweave":
        kind, batch, context = str(row["kind"]), str(row["batch"]), str(row["context"])
        sizes = ("--batch", batch, "--context", context) if kind == "decode" else ("--prompt", context)
        command = ("gpu-attention", "--kinds", kind, *sizes, "--check")
        return kind, Target(f"{kind}, {batch} x {context}", f"_{kind}_attention_kernel", command, roof)
    if result.bench == "gpu-products" and provider.startswith("Triton"):
        if number(row, "T") > MOST_TOKENS:
            return None
        mode, stage, tokens = provider.split()[-1], str(row["stage"]), str(row["T"])
        command = ("gpu-products", "--tokens", tokens, "--stages", stage, "--modes", mode, "--check")
        name = f"{stage} {mode}, {tokens} tokens"
        return f"{stage} {mode}", Target(name, "_gemm_kernel", command, roof)
    return None


def _profiled(ncu: str, target: Target, limit: float) -> list[Row]:
    """A row a launch, or one that says why there is none."""
    base: Row = {"provider": target.name, "roof_pct": target.roof_pct}
    bench = [sys.executable, "-m", "zweave.cli.main", "bench", *target.bench]
    command = ncu_command(ncu, target.kernels, LAUNCHES, bench)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return [base | {"status": "failed", "note": f"not done after {limit:g} s"}]
    launches = launches_of(done.stdout.splitlines())
    if not launches:
        return [base | {"status": "failed", "note": error_of(done.stdout + done.stderr)[:200]}]
    return [base | {"status": "ok"} | launch for launch in launches]
