"""Figures as PNG files, drawn without a screen."""

from pathlib import Path
from typing import Any

from ..errors import ZweaveError
from .atomic_write import atomic_write


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of a size in inches; ZweaveError if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ZweaveError("a PNG needs matplotlib: pip install 'zweave[plot]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: Any, path: Path) -> None:
    """Writes a figure, whole or not at all; ZweaveError if the file cannot be written."""
    try:
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    except OSError as error:
        raise ZweaveError(f"cannot write {path}: {error.strerror or error}") from None
