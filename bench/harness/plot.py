"""The figures of `--plot`: a roofline, or bars."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zweave.io.figure import new_figure, write_png

from .machine import machine
from .report import Report, Row

# Colour-blind safe (Okabe and Ito), black and yellow left out.
PROVIDER_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#999999")


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
    for index, ((name, values), marker) in enumerate(zip(points.items(), "osD^v<>PX*" * 9, strict=False)):
        # Hollow, and the later the smaller: of markers on the same spot all are seen.
        size = 70 - 45 * index / max(1, len(points) - 1)
        colour = PROVIDER_COLOURS[index % len(PROVIDER_COLOURS)]
        axes.scatter(
            *zip(*values, strict=True),
            label=name,
            marker=marker,
            s=size,
            facecolors="none",
            edgecolors=colour,
        )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    # Above the roof, where no point can lie.
    middle = float(np.sqrt(x[0] * arithmetic / read))
    for text, place, offset in (
        (f"{read / 1e9:.0f} GB/s", (middle, middle * read / 1e9), (-6, 4)),
        (f"{arithmetic / 1e9:.0f} GFLOP/s", (x[-1], arithmetic / 1e9), (0, 4)),
    ):
        axes.annotate(text, place, offset, textcoords="offset points", fontsize=8, ha="right", va="bottom")
    axes.margins(y=0.1)
    axes.grid(which="both", alpha=0.2)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_bars(axes: Any, rows: Sequence[Row]) -> None:
    """Tokens a second, or microseconds where there are none: a colour a provider, and the spread of its rounds."""
    key, label = ("tok_s", "new tokens/s") if any(row.get("tok_s") for row in rows) else ("seconds", "us")
    shown = [row for row in rows if row.get(key) is not None]
    names = [_bar_name(row) for row in shown]
    values = [_number(row, key) * (1 if key == "tok_s" else 1e6) for row in shown]
    order = list(dict.fromkeys(str(row["provider"]) for row in shown))
    colours = [PROVIDER_COLOURS[order.index(str(row["provider"])) % len(PROVIDER_COLOURS)] for row in shown]
    spread = [_spread(row, value) for row, value in zip(shown, values, strict=True)]
    axes.barh(range(len(shown)), values, color=colours, xerr=np.transpose(spread) if shown else None,
              error_kw={"elinewidth": 0.8, "capsize": 2})  # fmt: skip
    for place, (value, (_, longer)) in enumerate(zip(values, spread, strict=True)):
        # Behind the end of the spread, not across it.
        axes.annotate(f"{value:.4g}", (value + longer, place), (4, 0), textcoords="offset points", va="center",
                      fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.margins(x=0.12)


def _spread(row: Row, value: float) -> tuple[float, float]:
    """How far the slowest and the fastest round lie below and above a bar's end; 0 where there is one round."""
    seconds, fastest, slowest = (_number(row, key) for key in ("seconds", "fastest", "slowest"))
    if not (seconds and fastest and slowest):
        return 0.0, 0.0
    ratios = (
        (seconds / slowest, seconds / fastest) if row.get("tok_s") else (fastest / seconds, slowest / seconds)
    )
    return max(0.0, value * (1 - ratios[0])), max(0.0, value * (ratios[1] - 1))


def _bar_name(row: Row) -> str:
    keys = ("requests", "experts", "tokens", "batch", "context", "E", "B")
    extra = [f"{key} {row[key]}" for key in keys if row.get(key) is not None]
    return ", ".join([str(row["provider"]), *extra])


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0
