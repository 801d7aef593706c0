"""Rows as Markdown tables."""

from collections.abc import Iterable, Sequence

from .evaluate import Row

_HEADINGS = ("task", "method", "parameters", "accuracy", "± stderr", "n", "runs", "seconds")


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table, one line for each row; a task is named in its first."""
    lines = [_HEADINGS, ("---", "---", *["---:"] * 6)]
    shown = ""
    for row in rows:
        task, shown = ("" if row.task == shown else row.task), row.task
        figures = (
            "" if row.parameters is None else f"{row.parameters:,}",
            f"{row.accuracy:.3f}",
            f"{row.stderr:.3f}",
            str(row.n),
            str(row.runs),
            f"{row.seconds:.1f}",
        )
        lines.append((task, row.method, *figures))
    return table(lines)


def table(lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table of lines of cells; the second line has the alignments."""
    escaped = ([cell.replace("|", r"\|") for cell in cells] for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)
