"""Progress of long jobs: the function that reports it, and a bar that draws it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Report: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is (0 if unknown)."""


def silent(stage: str, done: int, total: int) -> None:
    """A report that shows nothing."""


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Yields a report that draws a bar a stage on standard error, or prints a line a stage if that is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total or None, count="")
                if not console.is_terminal:
                    console.print(stage, highlight=False)
            count = f"{done}/{total}" if total else ""
            bars.update(tasks[stage], completed=done, total=total or None, count=count)

        yield report
