"""Task files: where they lie, their lines, and one clear sentence for a line that is malformed."""

import csv
import gzip
import io
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ZweaveError
from ..io.json_text import parse_json
from .task import Sample, Splits

Parsed = TypeVar("Parsed")


def task_file(data: Path | None, name: str) -> Path:
    """A task file's path; ZweaveError when it is not there."""
    if data is None:
        raise ZweaveError(
            f"{name} is wanted: give the directory of the task files (--data or $ZWEAVE_DATA), docs/tasks.md says "
            "where to get them; the task addition needs none"
        )
    path = data / name
    if not path.is_file():
        raise ZweaveError(
            f"{path} is missing: put the file there, docs/tasks.md says where to get it, or give another directory"
        )
    return path


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A file's text without a byte order mark, unpacked if its name ends in .gz."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode(encoding)
        return text.removeprefix("\ufeff")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ZweaveError(f"{path} cannot be read ({error}): get the file again") from None


def parse(path: Path, entries: Iterable[Any], reader: Callable[[Any], Parsed], what: str) -> list[Parsed]:
    """Reads each entry; ZweaveError names the number of the first that is not `what`. Empty lines count."""
    found = []
    for number, entry in enumerate(entries, start=1):
        if not entry or (isinstance(entry, str) and not entry.strip()):
            continue
        try:
            found.append(reader(entry))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise ZweaveError(f"{path}, entry {number} is not {what}") from None
    return found


def read_lines(
    path: Path, reader: Callable[[str], Parsed], what: str, encoding: str = "utf-8"
) -> list[Parsed]:
    """One entry a line."""
    return parse(path, text_lines(path, encoding), reader, what)


def text_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """A file's lines, ended by LF or CRLF alone: Latin-1 texts hold other characters that look like an end."""
    return [line.removesuffix("\r") for line in read_text(path, encoding).split("\n")]


def read_json_lines(path: Path, reader: Callable[[Any], Parsed], what: str) -> list[Parsed]:
    return read_lines(path, lambda line: reader(parse_json(line)), what)


def read_json_list(path: Path, reader: Callable[[Any], Parsed], what: str) -> list[Parsed]:
    try:
        entries = parse_json(read_text(path))
    except ValueError as error:
        raise ZweaveError(f"{path} is not JSON ({error})") from None
    if not isinstance(entries, list):
        raise ZweaveError(f"{path} is not a JSON list")
    return parse(path, entries, reader, what)


def read_csv(path: Path, reader: Callable[[list[str]], Parsed], what: str) -> list[Parsed]:
    return parse(path, csv.reader(io.StringIO(read_text(path), newline="")), reader, what)


def split_pool(samples: Sequence[Sample], test: int = 1000) -> Splits:
    """Splits what comes in one file, always the same way: `test` samples, half of them at most, are held out."""
    pool = list(samples)
    random.Random(0).shuffle(pool)
    test = min(test, len(pool) // 2)
    return Splits(train=pool[test:], test=pool[:test])
