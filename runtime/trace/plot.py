"""A timeline as a picture: one row for each request, one colour for each expert, and the cache blocks below."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..io.figure import new_figure, write_png
from .timeline import Line, Timeline, expert_text

_BASE_COLOUR = "0.6"
# Height of a request's row, inches.
_ROW = 0.28
_BLOCKS = (("in use", "blocks_in_use", "0.35"), ("cached", "blocks_cached", "0.75"))
_HATCHES = {"first pass": "////", "prompt": "", "decode": ""}


def save_png(timeline: Timeline, path: Path) -> None:
    """Draws a timeline; ZweaveError if matplotlib is not installed or the file cannot be written."""
    lines = list(timeline.lines.values())
    figure = new_figure(11, 2.6 + _ROW * len(lines))
    from matplotlib.patches import Patch

    top, below = figure.subplots(2, sharex=True, height_ratios=[max(2.0, _ROW * len(lines)), 1.2])
    colours = _colours(lines)
    labels: list[Any] = []
    for row, line in enumerate(lines):
        top.plot([_ms(timeline, line.arrived)], [row], marker="|", color="black", markersize=9)
        for start, stop, span in line.spans:
            top.barh(
                row,
                (stop - start) * 1e3,
                left=_ms(timeline, start),
                height=0.45 if span.phase == "decode" else 0.8,
                color=colours[expert_text(span.expert)],
                hatch=_HATCHES[span.phase],
                edgecolor="white",
                linewidth=0.3,
            )
        labels.append(
            top.annotate(_reuse(line), (_ms(timeline, line.finished or line.arrived), row), (4, 0),
                         textcoords="offset points", va="center", fontsize=7)
        )  # fmt: skip
    top.set_yticks(range(len(lines)), [line.prompt.replace("$", r"\$") for line in lines], fontsize=7)
    top.invert_yaxis()
    legend = [Patch(color=colour, label=name) for name, colour in colours.items()]
    legend.append(Patch(facecolor="white", edgecolor="0.3", hatch="////", label="first pass"))
    top.legend(handles=legend, fontsize=7, loc="lower left", ncols=4, bbox_to_anchor=(0, 1))
    times = [_ms(timeline, step.stop) for step in timeline.steps]
    counts = [[getattr(step.stats, name) for step in timeline.steps] for _, name, _ in _BLOCKS]
    below.stackplot(
        times, *counts, labels=[label for label, _, _ in _BLOCKS], colors=[c for _, _, c in _BLOCKS]
    )
    below.set_ylabel("blocks")
    below.set_xlabel("ms")
    below.legend(fontsize=7, loc="upper left")
    _make_room(figure, top, labels)
    write_png(figure, path)


def _make_room(figure: Any, axes: Any, labels: Sequence[Any]) -> None:
    """Ends the axis of times where the longest label ends, so that none runs over the frame."""
    # The layout follows the axis, and the widths the layout: twice comes near enough.
    for _ in range(2):
        figure.draw_without_rendering()
        frame = axes.get_window_extent()
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        # A label begins at a time, which moves with the axis, and is as wide as it is in print.
        factors = [
            (box.x0 - frame.x0) / (frame.width - box.width) for box in boxes if box.width < frame.width
        ]
        start, end = axes.get_xlim()
        axes.set_xlim(start, start + (end - start) * max([1.0, *factors]))


def _ms(timeline: Timeline, seconds: float) -> float:
    return (seconds - timeline.start) * 1e3


def _colours(lines: list[Line]) -> dict[str, str]:
    names = dict.fromkeys(expert_text(span.expert) for line in lines for _, _, span in line.spans)
    experts = [name for name in names if name != "base"]
    return {"base": _BASE_COLOUR} | {name: f"C{index % 10}" for index, name in enumerate(experts)}


def _reuse(line: Line) -> str:
    result = line.result
    if result is None or result.reuse is None:
        return ""
    return f"{result.reuse}: {result.reused_tokens + result.resumed_tokens} of {result.prompt_tokens}"
