"""What did `bench gpu` measure, beside what was predicted?"""

import argparse
from collections import Counter
from collections.abc import Sequence

from ...harness.report import Column, Report, Row
from ...harness.results import ResultRow, number, read_results

# What a row is of, besides its provider.
KEYS = ("stage", "kind", "T", "E", "batch", "context", "experts")
COLUMNS = (
    Column("part", "part"),
    Column("provider", "provider"),
    Column("of", "of"),
    Column("seconds", "measured us", ",.1f", 1e6),
    Column("predicted_seconds", "predicted us", ",.1f", 1e6),
    Column("vs_predicted", "measured / predicted", ".2f"),
    Column("roof_pct", "% of the roof", ".0f"),
    Column("predicted_for", "predicted for"),
)


def run(args: argparse.Namespace) -> Report:
    results = read_results(args.results)
    # First what was predicted; the others are there for the figure.
    ordered = sorted(results, key=lambda result: result.row.get("predicted_seconds") is None)
    rows = [_row(result) for result in ordered if _is_shown(result.row)]
    return Report(
        "gpu-summary",
        "What was predicted, and what was measured",
        COLUMNS,
        rows,
        sections=("part",),
        plot="roofline",
        roofs=_roofs(results),
        notes=[*_counts(results), *_fits(results)],
    )


def _is_shown(row: Row) -> bool:
    """Rows with a prediction, and those for the figure."""
    return bool(row.get("predicted_seconds") or (row.get("roof_pct") and row.get("gflop_s")))


def _row(result: ResultRow) -> Row:
    row = result.row
    of = ", ".join(f"{key} {row[key]}" for key in KEYS if row.get(key) is not None)
    kept = (
        "status",
        "seconds",
        "predicted_seconds",
        "predicted_for",
        "vs_predicted",
        "roof_pct",
        "gb_s",
        "gflop_s",
    )
    return {"part": result.part, "provider": row["provider"], "of": of} | {key: row.get(key) for key in kept}


def _roofs(results: Sequence[ResultRow]) -> tuple[float, float] | None:
    """The highest rates of reading and of arithmetic that were measured."""
    rows = [result.row for result in results]
    read = max(
        [number(row, "read_gb_s") for row in rows]
        + [number(row, "gb_s") for row in rows if str(row.get("provider")).startswith("read")],
        default=0.0,
    )
    arithmetic = max((number(row, "gflop_s") for row in rows), default=0.0)
    return (read * 1e9, arithmetic * 1e9) if read and arithmetic else None


def _counts(results: Sequence[ResultRow]) -> list[str]:
    """A line for each part that has rows which are wrong or failed."""
    parts = dict.fromkeys(result.part for result in results)
    lines = []
    for part in parts:
        statuses = Counter(str(r.row.get("status", "ok")) for r in results if r.part == part)
        if statuses.keys() - {"ok"}:
            lines.append(f"{part}: " + ", ".join(f"{count} {status}" for status, count in statuses.items()))
    return lines


def _fits(results: Sequence[ResultRow]) -> list[str]:
    """A line for each fit of a fixed cost and a rate."""
    return [
        f"{r.part}: {r.row['provider']} at T = {r.row['T']}: {1e6 * number(r.row, 'fixed_seconds'):.1f} us a stage "
        f"and {number(r.row, 'asymptote_gb_s') / 1e3:.2f} TB/s"
        for r in results
        if r.row.get("fixed_seconds") is not None
    ]
