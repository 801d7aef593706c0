"""Nsight Compute: the command that profiles a few launches, and what it prints."""

import csv
import os
import shutil
from collections.abc import Iterable, Sequence

from zweave.errors import ZweaveError

SHARES = {
    "dram_pct": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_pct": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm_pct": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "warps_pct": "sm__warps_active.avg.pct_of_peak_sustained_active",
}
# Warps that wait for each of these, for every instruction that is issued.
STALLS = {
    reason: f"smsp__average_warps_issue_stalled_{reason}_per_issue_active.ratio"
    for reason in ("long_scoreboard", "short_scoreboard", "barrier", "wait", "math_pipe_throttle", "membar")
}


def ncu_path() -> str:
    """Where it is; ZweaveError if it is not installed."""
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("ncu") or shutil.which("ncu", path=f"{cuda}/bin")
    if found is None:
        raise ZweaveError("ncu is not installed: Nsight Compute comes with the CUDA toolkit")
    return found


def ncu_command(ncu: str, kernels: str, launches: int, command: Sequence[str]) -> list[str]:
    """Profiles the first launches of the kernels whose name fits, and ends the command then.

    kernels: a regular expression.
    """
    metrics = ",".join([*SHARES.values(), *STALLS.values()])
    options = ["--clock-control", "none", "--csv", "--kernel-name", f"regex:{kernels}"]
    options += ["--launch-count", str(launches), "--kill", "yes", "--metrics", metrics]
    return [ncu, *options, *command]


def launches_of(lines: Iterable[str]) -> list[dict[str, object]]:
    """A dictionary a launch: kernel, the shares in %, and the stalls as `stall` with the largest first.

    lines: what ncu prints with --csv, between whatever else is printed.
    """
    listed = list(lines)
    start = next((i for i, line in enumerate(listed) if line.startswith('"ID"')), len(listed))
    launches: dict[str, dict[str, object]] = {}
    for record in csv.DictReader(line for line in listed[start:] if line.startswith('"')):
        launch = launches.setdefault(record["ID"], {"kernel": record["Kernel Name"]})
        launch[record["Metric Name"]] = _number(record["Metric Value"])
    return [_named(launch) for launch in launches.values()]


def _named(launch: dict[str, object]) -> dict[str, object]:
    stalls = {reason: launch.get(metric) for reason, metric in STALLS.items()}
    measured = {reason: value for reason, value in stalls.items() if isinstance(value, float)}
    worst = sorted(measured, key=measured.__getitem__, reverse=True)[:2]
    return {
        "kernel": launch["kernel"],
        **{key: launch.get(metric) for key, metric in SHARES.items()},
        "stall": ", ".join(f"{reason} {measured[reason]:.1f}" for reason in worst),
    }


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def error_of(output: str) -> str:
    """The first line in which ncu tells what is wrong, or the last line."""
    lines = [line for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "==ERROR==" in line), lines[-1] if lines else "no output")
