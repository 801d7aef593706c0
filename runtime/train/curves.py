"""The figure of a training: reward, accuracy and validation accuracy over the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ZweaveError
from ..io.figure import new_figure, write_png


def save_curves(lines: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Writes a PNG of the log's lines; nothing without matplotlib, which a training does not need."""
    try:
        figure = new_figure(8, 5)
    except ZweaveError:
        return
    axes = figure.add_subplot()
    steps = [line["step"] + 1 for line in lines]
    axes.plot(steps, [line["reward"] for line in lines], label="reward", color="tab:blue", alpha=0.6)
    axes.plot(
        steps,
        [line["accuracy"] for line in lines],
        label="accuracy of the batch",
        color="tab:gray",
        alpha=0.6,
    )
    validations = [line for line in lines if line["validation"] is not None]
    axes.plot(
        [line["step"] + 1 for line in validations],
        [line["validation"] for line in validations],
        "o-",
        label="accuracy, validation",
        color="tab:green",
    )
    axes.set_xlabel("step")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    write_png(figure, path)
