"""Heat map of an expert: how far each layer's matrices are scaled away from the base model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..checkpoint.module_name import LINEARS, layer_of, linear_of
from ..io.figure import new_figure, write_png
from .expert import Expert

_DARK, _BRIGHT = (24, 24, 56), (255, 176, 32)


@dataclass(frozen=True, slots=True)
class Cell:
    """The deviation of one matrix.

    module: the matrix.
    mean: mean |z - 1|.
    signed: mean z.
    largest: largest |z - 1|.
    """

    module: str
    mean: float
    largest: float
    signed: float = 1.0


def cells(expert: Expert) -> dict[tuple[int, str], Cell]:
    """(layer, linear of LINEARS) -> deviation from 1; matrices that are not adapted are left out."""
    found = {}
    for module, z in expert.z.items():
        deviation = (z.double() - 1).abs()
        key = (layer_of(module), linear_of(module))
        found[key] = Cell(module, float(deviation.mean()), float(deviation.max()), float(z.double().mean()))
    return found


def text_map(expert: Expert) -> Table:
    """Layers down, matrices across: mean |z - 1| in thousandths, the brighter the more."""
    means = {place: 1e3 * cell.mean for place, cell in cells(expert).items()}
    return grid(means, "mean |z - 1| in thousandths", 2)


def grid(values: Mapping[tuple[int, str], float], title: str, digits: int) -> Table:
    """Layers down, matrices of LINEARS across, values of at least 0, the brighter the more.

    digits: behind the point.
    """
    top = max(values.values())
    table = Table(box=None, padding=0, title=title)
    table.add_column("layer ", justify="right")
    for name in LINEARS:
        table.add_column(name.removesuffix("_proj"), justify="right", min_width=8)
    for layer in range(1 + max(layer for layer, _ in values)):
        table.add_row(f"{layer} ", *(_cell_text(values.get((layer, name)), top, digits) for name in LINEARS))
    return table


def save_png(expert: Expert, path: Path) -> None:
    """Draws the heat map; ZweaveError if matplotlib is not installed or the file cannot be written."""
    found = cells(expert)
    layers = 1 + max(layer for layer, _ in found)
    figure = new_figure(10, 2 + 0.2 * layers)
    left, right = figure.subplots(1, 2, sharey=True)
    # Both ways from 1, the base model, in one measure: where an expert strengthens, and where it weakens.
    reach = max(abs(cell.signed - 1) for cell in found.values()) or 1e-3
    limits = {"cmap": "RdBu_r", "vmin": 1 - reach, "vmax": 1 + reach}
    lowest = min(cell.mean for cell in found.values())
    for axes, title, values, shades in (
        (left, "mean z (1: the base model)", {key: cell.signed for key, cell in found.items()}, limits),
        (
            right,
            "mean |z - 1|",
            {key: cell.mean for key, cell in found.items()},
            {"cmap": "viridis", "vmin": lowest},
        ),
    ):
        grid = [[values.get((layer, name), float("nan")) for name in LINEARS] for layer in range(layers)]
        image = axes.imshow(grid, aspect="auto", **shades)
        axes.set_xticks(range(len(LINEARS)), [name.removesuffix("_proj") for name in LINEARS])
        axes.set_title(title, fontsize=9)
        figure.colorbar(image, ax=axes)
    left.set_ylabel("layer")
    figure.suptitle(_title(expert), fontsize=10)
    write_png(figure, path)


def _title(expert: Expert) -> str:
    """What the expert says of itself, in one line without a dollar sign, which would begin a formula."""
    text = " ".join((expert.description or f"expert {expert.digest[:12]}").split()).replace("$", r"\$")
    return text if len(text) <= 90 else f"{text[:89]}…"


def _cell_text(value: float | None, top: float, digits: int) -> Text:
    if value is None:
        return Text("- ")
    heat = value / top if top else 0.0
    red, green, blue = (
        round(dark + heat * (bright - dark)) for dark, bright in zip(_DARK, _BRIGHT, strict=True)
    )
    foreground = "black" if heat > 0.5 else "white"
    return Text(f"{value:7.{digits}f} ", Style.parse(f"{foreground} on rgb({red},{green},{blue})"))
