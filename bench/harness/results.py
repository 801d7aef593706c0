"""Rows that benches left in a folder, as `bench gpu` leaves them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zweave.errors import ZweaveError

from .report import Row


@dataclass(frozen=True, slots=True)
class ResultRow:
    """part: the file's name without suffix; bench: whose line it is."""

    part: str
    bench: str
    row: Row


def read_results(folder: Path) -> list[ResultRow]:
    """Rows of all files of JSON in a folder that a bench wrote, by the files' names.

    Raises ZweaveError if there is no such folder; files of other kinds are passed over.
    """
    if not folder.is_dir():
        raise ZweaveError(f"there is no folder {folder}")
    return [row for path in sorted(folder.glob("*.json")) for row in _rows(path)]


def _rows(path: Path) -> Iterator[ResultRow]:
    try:
        line = json.loads(path.read_text())
    except (OSError, ValueError):
        return
    if isinstance(line, dict) and isinstance(line.get("rows"), list):
        for row in line["rows"]:
            yield ResultRow(path.stem, str(line.get("bench", "")), row)


def number(row: Row, key: str) -> float:
    """A figure of a row, 0 where it has none."""
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0
