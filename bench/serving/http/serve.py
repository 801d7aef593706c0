"""What does HTTP cost, and how long do clients wait?"""

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...harness.options import pace
from ...harness.report import Column, Report, Row
from ..fixtures import Fixtures
from ..workload import Workload
from .expert_files import write_experts
from .load import Answered, closed_loop, open_loop
from .server_process import server_process

COLUMNS = (
    Column("loop", "loop"),
    Column("clients", "clients", "d"),
    Column("experts", "experts", "d"),
    Column("tok_s", "new tokens/s", ".1f"),
    Column("vs_engine", "x engine", ".3f"),
    Column("first_p50", "first token, s", ".4f"),
    Column("first_p99", "p99", ".4f"),
    Column("gap_p50", "next token, s", ".4f"),
    Column("gap_p99", "p99", ".4f"),
)


def run(args: argparse.Namespace) -> Report:
    fixtures = Fixtures(args.model, args.dtype)
    rows: list[Row] = []
    with TemporaryDirectory(prefix="zweave-") as folder:
        names = write_experts(Path(folder), fixtures.config, max(args.experts))
        options = ["--experts", folder, "--dtype", args.dtype, "--no-prefix-cache", "--kv-tokens", "32768"]
        with server_process(fixtures.checkpoint.directory, options) as address:
            work = partial(_row, args, fixtures, address)
            rows += [work(clients, []) for clients in args.clients]
            rate = args.rate or 8 / statistics.mean(_seconds(args, address, fixtures))
            rows.append(work(0, [], rate=rate))
            rows += [work(args.clients[-1], names[:count]) for count in args.experts]
    title = f"{args.prompt} + {args.new} tokens over loopback, {args.dtype}; the engine alone in turn with the server"
    return Report("serve", title, COLUMNS, rows)


def _row(
    args: argparse.Namespace,
    fixtures: Fixtures,
    address: str,
    clients: int,
    names: Sequence[str],
    rate: float | None = None,
) -> Row:
    """One row: medians over rounds, and percentiles over all their answers."""
    bodies = _bodies(args, fixtures, max(args.requests, clients), names)
    answers: list[Answered] = []
    speeds, ratios = [], []
    for _ in range(pace(args, warmup=0).rounds):
        start = time.perf_counter()
        found = closed_loop(address, bodies, clients) if rate is None else open_loop(address, bodies, rate)
        seconds = time.perf_counter() - start
        answers += found
        speeds.append(len(bodies) * args.new / seconds)
        if rate is None and not names:
            ratios.append(_engine_seconds(args, fixtures, bodies, clients) / seconds)
    first = [answer.first for answer in answers]
    gaps = [gap for answer in answers for gap in answer.gaps]
    return {
        "loop": "closed" if rate is None else f"open, {rate:.2f}/s",
        "clients": clients or None,
        "experts": len(names),
        "status": "ok",
        "tok_s": statistics.median(speeds),
        "vs_engine": statistics.median(ratios) if ratios else None,
        "first_p50": _percentile(first, 50),
        "first_p99": _percentile(first, 99),
        "gap_p50": _percentile(gaps, 50),
        "gap_p99": _percentile(gaps, 99),
    }


def _bodies(
    args: argparse.Namespace, fixtures: Fixtures, count: int, names: Sequence[str]
) -> list[dict[str, Any]]:
    prompts = Workload(count, args.prompt, args.new).prompts(fixtures.config)
    return [
        {
            "model": names[index % len(names)] if names else "base",
            "prompt": prompt,
            "max_tokens": args.new,
            "temperature": 0,
            "ignore_eos": True,
        }
        for index, prompt in enumerate(prompts)
    ]


def _engine_seconds(
    args: argparse.Namespace, fixtures: Fixtures, bodies: Sequence[dict[str, Any]], clients: int
) -> float:
    """Seconds in which the engine alone answers the same requests, so many at a time."""
    from zweave.request import Request

    requests = [Request(body["prompt"], max_tokens=args.new, ignore_eos=True) for body in bodies]
    start = time.perf_counter()
    for first in range(0, len(requests), clients):
        fixtures.engine.generate(requests[first : first + clients])
    return time.perf_counter() - start


def _seconds(args: argparse.Namespace, address: str, fixtures: Fixtures) -> list[float]:
    """Of answers that eight clients get."""
    answers = closed_loop(address, _bodies(args, fixtures, 16, []), 8)
    return [answer.arrivals[-1] - answer.sent for answer in answers]


def _percentile(values: Sequence[float], percent: int) -> float | None:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else None
