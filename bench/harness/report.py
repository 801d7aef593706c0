"""What a bench prints: a table for people, then one line of JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table

from .machine import commit, machine

Row: TypeAlias = dict[str, object]


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
    """Prints the report and returns the exit status: 1 if a provider was wrong or failed."""
    if not json_only:
        console = Console()
        # A pipe has no width of its own; at 80 columns the figures would be cut.
        console = console if console.is_terminal else Console(width=160)
        console.print(make_table(report))
        for note in report.notes:
            console.print(note, markup=False, highlight=False)
    print(report.json_line())
    return 0 if report.all_right else 1


def make_table(report: Report) -> Table:
    table = Table(title=report.title, title_justify="left", caption=_caption(), caption_justify="left")
    if report.markdown:
        table.box = box.MARKDOWN
    for column in report.columns:
        table.add_column(column.heading, justify="right" if column.format else "left", no_wrap=True)
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
