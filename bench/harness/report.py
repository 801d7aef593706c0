"""What a bench prints: a table for people, as wide as their terminal, and one line of JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from .machine import commit, machine

Row: TypeAlias = dict[str, object]
# The least that a column of words is folded to.
_WORDS = 8


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: a key of the rows, its heading, a format for numbers, and what they are times."""

    key: str
    heading: str
    format: str = ""
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """Rows of a bench and how to show them.

    sections: keys whose change draws a line in the table.
    plot: which figure shows the rows.
    roofs: read and arithmetic roof for the roofline plot, bytes and operations a second.
    markdown: whether the table is one that a document can take as it is.
    """

    bench: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    sections: tuple[str, ...] = ()
    plot: Literal["roofline", "bars"] = "bars"
    roofs: tuple[float, float] | None = None
    markdown: bool = False
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def all_right(self) -> bool:
        """False if a provider was wrong or failed."""
        return all(row.get("status", "ok") == "ok" for row in self.rows)

    def json_line(self) -> str:
        rows = [{key: _short(value) for key, value in row.items()} for row in self.rows]
        return json.dumps(
            {"bench": self.bench, "commit": commit(), "machine": machine(), "rows": rows}, allow_nan=False
        )


def _short(value: object) -> object:
    """Six digits of a number: more are noise."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def print_report(report: Report, json_only: bool = False) -> int:
    """Prints the report and returns the exit status: 1 if a provider was wrong or failed.

    A terminal gets the table, a file or a pipe the line of JSON behind it.
    """
    console = Console()
    if not json_only:
        # A pipe has no width of its own; at 80 columns the figures would be cut.
        print_table(report, console if console.is_terminal else Console(width=160))
    if json_only or not console.is_terminal:
        print(report.json_line())
    return 0 if report.all_right else 1


def print_table(report: Report, console: Console) -> None:
    """Prints the report; figures that do not fit beside the others follow in tables below."""
    for part in parts(report, console):
        console.print(make_table(part))
    for note in report.notes:
        console.print(note, markup=False, highlight=False)


def parts(report: Report, console: Console) -> list[Report]:
    """The report in tables that fit the console: each has the columns of words, and as many figures as it holds."""
    words = [column for column in report.columns if not column.format]
    figures = [column for column in report.columns if column.format]
    found: list[list[Column]] = [[]]
    unlimited = console.options.update(width=10_000)
    for figure in figures:
        wider = replace(report, columns=[*words, *found[-1], figure])
        if found[-1] and Measurement.get(console, unlimited, make_table(wider)).minimum > console.width:
            found.append([])
        found[-1].append(figure)
    if len(found) == 1:
        return [report]
    return [replace(report, columns=[*words, *some]) for some in found]


def make_table(report: Report) -> Table:
    table = Table(title=report.title, title_justify="left", caption=_caption(), caption_justify="left")
    if report.markdown:
        table.box = box.MARKDOWN
    for column in report.columns:
        # Words may be broken anywhere, figures nowhere.
        least = _WORDS
        if column.format:
            least = max(
                len(text) for text in [*column.heading.split(), *(_cell(r, column) for r in report.rows), ""]
            )
        table.add_column(
            column.heading, justify="right" if column.format else "left", min_width=least, overflow="fold"
        )
    rows = list(report.rows)
    for index, row in enumerate(rows):
        following = rows[index + 1] if index + 1 < len(rows) else row
        ends = any(row.get(key) != following.get(key) for key in report.sections)
        ends = ends and not report.markdown
        table.add_row(*(_cell(row, column) for column in report.columns), end_section=ends)
    return table


def _caption() -> str:
    info = machine()
    return (
        f"{info['gpu'] or info['cpu']}, {info['threads']} threads, torch {info['torch']}, commit {commit()}"
    )


def _cell(row: Row, column: Column) -> str:
    value = row.get(column.key)
    status = row.get("status", "ok")
    if column.key == "provider" and status != "ok":
        return f"{_escape(value)} [bold red]{status}: {_escape(row.get('note', ''))}[/bold red]"
    if value is None:
        return ""
    if column.format and isinstance(value, (int, float)):
        return format(value if column.scale == 1 else value * column.scale, column.format)
    return _escape(value)


def _escape(value: object) -> str:
    return str(value).replace("[", r"\[")
