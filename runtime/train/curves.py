"""The figure of a training: reward, accuracy and validation over the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def save_curves(lines: Sequence[dict[str, Any]], path: Path, title: str) -> bool:
    """Writes a PNG of the log's lines; False where matplotlib is not installed, which a training does not need."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
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
    looks = [line for line in lines if line["validation"] is not None]
    axes.plot(
        [line["step"] + 1 for line in looks],
        [line["validation"] for line in looks],
        "o-",
        label="accuracy, validation",
        color="tab:green",
    )
    axes.set_xlabel("step")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=110)
    return True
