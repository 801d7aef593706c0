"""Rows as tables: for a terminal as wide as it is, for documents in Markdown."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .evaluate import Row

Cells = Sequence[Sequence[str]]
"""Headings, alignments as Markdown writes them, then the lines."""

_HEADINGS = ("task", "method", "parameters", "accuracy", "95%", "n", "runs", "seconds")


def row_cells(rows: Sequence[Row]) -> Cells:
    """One line for each row; a task is named in its first."""
    lines: list[tuple[str, ...]] = [_HEADINGS, ("---", "---", *["---:"] * 6)]
    shown = ""
    for row in rows:
        task, shown = ("" if row.task == shown else row.task), row.task
        figures = (
            "" if row.parameters is None else f"{row.parameters:,}",
            f"{row.accuracy:.3f}",
            span(row.low, row.high),
            str(row.n),
            str(row.runs),
            f"{row.seconds:.1f}",
        )
        lines.append((task, row.method, *figures))
    return lines


def span(low: float, high: float) -> str:
    """The two ends of an interval."""
    return f"{low:.3f} to {high:.3f}"


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    return as_markdown(row_cells(rows))


def as_markdown(cells: Cells) -> str:
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def print_cells(cells: Cells, console: Console | None = None) -> None:
    """Prints a table that folds its words to a terminal's width, or Markdown where there is no terminal."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        print(as_markdown(cells), file=console.file)
        return
    headings, alignments, *lines = cells
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading, alignment in zip(headings, alignments, strict=True):
        is_number = alignment.endswith(":")
        table.add_column(
            Text(heading), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(table)
