"""The figures of `--plot`: a roofline, or bars."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zweave.io.figure import new_figure, write_png

from .machine import machine
from .report import Report, Row


def save_plot(report: Report, path: Path) -> None:
    """Writes the report's figure as PNG; rows without a time are left out.

    Raises ZweaveError if matplotlib is missing or the file cannot be written.
    """
    figure = new_figure(10, 6.5)
    axes = figure.add_subplot()
    rows = [row for row in report.rows if row.get("seconds") is not None]
    if report.plot == "roofline" and report.roofs is not None:
        _draw_roofline(axes, rows, report.roofs)
    else:
        _draw_bars(axes, rows)
    info = machine()
    axes.set_title(f"{report.title}\n{info['gpu'] or info['cpu']}, {info['threads']} threads", fontsize=10)
    write_png(figure, path)


def _draw_roofline(axes: Any, rows: Sequence[Row], roofs: tuple[float, float]) -> None:
    """Operations a second over operations a byte; no point can lie above the roof."""
    read, arithmetic = roofs
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        gb_s, gflop_s = _number(row, "gb_s"), _number(row, "gflop_s")
        if gb_s > 0 and gflop_s > 0:
            points[str(row["provider"])].append((gflop_s / gb_s, gflop_s))
    intensities = [x for values in points.values() for x, _ in values] or [1.0]
    x = np.geomspace(min(intensities) / 2, max(*intensities, arithmetic / read) * 2, 200)
    axes.plot(x, np.minimum(x * read, arithmetic) / 1e9, color="black", linewidth=1, label="measured roofs")
    for (name, values), marker in zip(points.items(), "osD^v<>PX*" * 9, strict=False):
        axes.scatter(*zip(*values, strict=True), label=name, marker=marker, s=28, alpha=0.8)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    axes.annotate(f"{read / 1e9:.0f} GB/s", (x[0], x[0] * read / 1e9), fontsize=8)
    axes.annotate(f"{arithmetic / 1e9:.0f} GFLOP/s", (x[-1], arithmetic / 1e9), fontsize=8, ha="right")
    axes.grid(which="both", alpha=0.2)
    axes.legend(fontsize=8)


def _draw_bars(axes: Any, rows: Sequence[Row]) -> None:
    """Tokens a second where the rows have them, else microseconds."""
    key, label = ("tok_s", "new tokens/s") if any(row.get("tok_s") for row in rows) else ("seconds", "us")
    shown = [row for row in rows if row.get(key) is not None]
    names = [_bar_name(row) for row in shown]
    values = [_number(row, key) * (1 if key == "tok_s" else 1e6) for row in shown]
    bars = axes.barh(range(len(shown)), values, color="#4c72b0")
    axes.bar_label(bars, fmt="%.4g", padding=3, fontsize=8)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.margins(x=0.12)


def _bar_name(row: Row) -> str:
    keys = ("requests", "experts", "tokens", "E", "B")
    extra = [f"{key} {row[key]}" for key in keys if row.get(key) is not None]
    return ", ".join([str(row["provider"]), *extra])


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0
