"""What does HTTP cost, and how long do clients wait?"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...harness.options import pace
from ...harness.report import Column, Report, Row
from ..fixtures import Fixtures
from ..workload import Workload
from .churn import ADMIN_KEY, churn
from .expert_files import write_experts
from .load import Answered, closed_loop, open_loop
from .server_process import server_process

COLUMNS = (
    Column("work", "work"),
    Column("clients", "clients", "d"),
    Column("experts", "experts", "d"),
    Column("tok_s", "new tokens/s", ".1f"),
    Column("against", "against"),
    Column("ratio", "x that", ".3f"),
    Column("first_p50", "first token, s", ".4f"),
    Column("first_p99", "p99", ".4f"),
    Column("first_more", "ms more than the engine's", ".1f"),
    Column("gap_p50", "next token, s", ".4f"),
    Column("gap_p99", "p99", ".4f"),
)
# Requests of a row for each of its clients, if it has few.
_A_CLIENT = 4

Bodies = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Work:
    """What a row measures.

    clients: at a time, 0 in an open loop.
    names: experts round robin; none for the base model.
    rate: requests a second of an open loop.
    against, other: what else answers the same requests in turn, and how: (bodies, clients) -> its answers.
    beside: what goes on meanwhile.
    """

    name: str
    clients: int
    names: Sequence[str] = ()
    rate: float | None = None
    against: str | None = None
    other: Callable[[Bodies, int], list[Answered]] | None = None
    beside: Callable[[], AbstractContextManager[object]] = nullcontext


def run(args: argparse.Namespace) -> Report:
    fixtures = Fixtures(args.model, args.dtype)
    common = ["--dtype", args.dtype, "--no-prefix-cache", "--kv-tokens", "32768"]
    few = min(args.clients, key=lambda clients: abs(clients - 8))
    with TemporaryDirectory(prefix="zweave-") as folder:
        names = write_experts(Path(folder), fixtures.config, max(args.experts))
        options = [*common, "--experts", folder, "--admin-key", ADMIN_KEY]
        directory = fixtures.checkpoint.directory
        with server_process(directory, options) as address, server_process(directory, common) as bare:
            row = partial(_row, args, fixtures, address)
            engine = partial(_engine, fixtures)
            rows = [row(_Work("base", n, against="engine.generate", other=engine)) for n in args.clients]
            rate = args.rate or 0.8 * rows[args.clients.index(few)]["tok_s"] / args.new
            rows.append(row(_Work(f"base, {rate:.2f} requests/s", 0, rate=rate)))
            rows += [row(_Work("experts", few, names[:count])) for count in args.experts]
            rows.append(
                row(
                    _Work(
                        "experts, loads and unloads",
                        few,
                        names[: args.experts[0]],
                        beside=partial(churn, address, Path(folder) / f"{names[0]}.safetensors"),
                    )
                )
            )
            without = partial(closed_loop, bare)
            rows.append(
                row(_Work("base, experts loaded", few, against="a server without experts", other=without))
            )
    title = f"{args.prompt} + {args.new} tokens over loopback, {args.dtype}; what it is compared with in turn"
    return Report("serve", title, COLUMNS, rows)


def _row(args: argparse.Namespace, fixtures: Fixtures, address: str, work: _Work) -> Row:
    """One row: medians over rounds, and percentiles over all their answers."""
    count = max(work.clients, min(args.requests, _A_CLIENT * work.clients) or args.requests)
    bodies = _bodies(args, fixtures, count, work.names)
    answers: list[Answered] = []
    others: list[Answered] = []
    speeds, ratios = [], []
    for _ in range(pace(args, warmup=0).rounds):
        start = time.perf_counter()
        with work.beside():
            if work.rate is None:
                answers += closed_loop(address, bodies, work.clients)
            else:
                answers += open_loop(address, bodies, work.rate)
        seconds = time.perf_counter() - start
        speeds.append(len(bodies) * args.new / seconds)
        if work.other is not None:
            start = time.perf_counter()
            others += work.other(bodies, work.clients)
            ratios.append((time.perf_counter() - start) / seconds)
    first = [answer.first for answer in answers]
    gaps = [gap for answer in answers for gap in answer.gaps]
    # Only alone a request is in the server as it is in the engine: at once.
    alone = work.clients == 1 and others
    return {
        "work": work.name,
        "clients": work.clients or None,
        "experts": len(work.names),
        "status": "ok",
        "tok_s": statistics.median(speeds),
        "against": work.against,
        "ratio": statistics.median(ratios) if ratios else None,
        "first_p50": _percentile(first, 50),
        "first_p99": _percentile(first, 99),
        "first_more": _median_difference(answers, others) if alone else None,
        "gap_p50": _percentile(gaps, 50),
        "gap_p99": _percentile(gaps, 99),
    }


def _bodies(args: argparse.Namespace, fixtures: Fixtures, count: int, names: Sequence[str]) -> Bodies:
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


def _engine(fixtures: Fixtures, bodies: Bodies, clients: int) -> list[Answered]:
    """The engine alone answers the same requests, so many at a time; when each token came only if that is one."""
    from zweave.request import Request

    engine = fixtures.engine
    requests = [Request(body["prompt"], max_tokens=body["max_tokens"], ignore_eos=True) for body in bodies]
    if clients > 1:
        for first in range(0, len(requests), clients):
            engine.generate(requests[first : first + clients])
        return []
    answers = []
    for request in requests:
        answered = Answered(time.perf_counter())
        answered.arrivals += [time.perf_counter() for _ in engine.stream(request)]
        answers.append(answered)
    return answers


def _median_difference(answers: Sequence[Answered], others: Sequence[Answered]) -> float:
    """Milliseconds that a first token takes longer: the median of the same requests of the same rounds."""
    return 1e3 * statistics.median(
        one.first - other.first for one, other in zip(answers, others, strict=True)
    )


def _percentile(values: Sequence[float], percent: int) -> float | None:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else None
