"""Runs providers in turn and reports medians: what every bench shares."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def interleaved(
    providers: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each run by provider; a round runs each once, in turn, so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in providers}
    for index in range(warmup + rounds):
        for name, run in providers.items():
            start = time.perf_counter()
            run()
            if index >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Median seconds by provider."""
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu, "torch": torch.__version__}


def commit() -> str:
    """The checkout's commit, with a + if files differ from it."""
    root = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def print_json(bench: str, rows: list[dict[str, object]]) -> None:
    """The last line of every bench."""
    print(json.dumps({"bench": bench, "commit": commit(), "machine": machine(), "rows": rows}))
