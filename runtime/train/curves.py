"""The figure of a training: what its log says over the steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ZweaveError
from ..io.figure import new_figure, write_png


@dataclass(frozen=True, slots=True)
class Curve:
    """values: at some steps, counted from 1; style: as matplotlib has it."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    style: str = "-"


def write_curves(curves: Sequence[Curve], path: Path, title: str, most: float | None = None) -> None:
    """Writes a PNG; nothing without matplotlib, which a training does not need.

    most: where the figure ends.
    """
    try:
        figure = new_figure(8, 5)
    except ZweaveError:
        return
    axes = figure.add_subplot()
    for curve in curves:
        axes.plot(curve.steps, curve.values, curve.style, label=curve.label, alpha=0.7)
    if most is not None:
        axes.set_ylim(0, most)
    axes.set_xlabel("step")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    write_png(figure, path)


def save_curves(lines: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Writes the curves of an expert's log."""

    def curve(name: str, label: str, style: str = "-") -> Curve:
        known = [line for line in lines if line[name] is not None]
        return Curve(label, [line["step"] + 1 for line in known], [line[name] for line in known], style)

    curves = [
        curve("reward", "reward"),
        curve("accuracy", "accuracy of the batch"),
        curve("validation", "accuracy, validation", "o-"),
    ]
    write_curves(curves, path, title)
