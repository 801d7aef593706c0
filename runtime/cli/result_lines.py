"""Results as JSON lines in a file: which of them an earlier run left there, and writing on behind them."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import ZweaveError
from ..io.json_text import parse_json
from ..request import Result
from .request_lines import open_text


def result_line(index: int, result: Result, output: IO[str]) -> str:
    """A result as a line of JSON, in characters that the stream has: what it escaped itself would be no JSON."""
    is_unicode = (getattr(output, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
    return json.dumps({"index": index, **dataclasses.asdict(result)}, ensure_ascii=not is_unicode) + "\n"


def finished(path: Path, total: int) -> set[int]:
    """The indices of the results that a file holds, none if there is no file. A last line that was cut off is none.

    total: requests that the results may be of.
    Raises ZweaveError for a file that holds anything else.
    """
    if not path.exists():
        return set()
    found: set[int] = set()
    with open_text(str(path), "r") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break
            try:
                index = parse_json(line)["index"]
            except (ValueError, KeyError, TypeError):
                index = None
            if not isinstance(index, int):
                raise ZweaveError(f"--resume: {path}, line {number} is no result of zweave generate --jsonl")
            if not 0 <= index < total:
                raise ZweaveError(
                    f"--resume: {path}, line {number} answers request {index}, and the input has {total}: "
                    "give the same input as before"
                )
            found.add(index)
    return found


@contextmanager
def open_results(path: Path, resume: bool) -> Iterator[IO[str]]:
    """Opens a file for results: a new one, or behind the last whole line of an earlier one."""
    if resume and path.exists():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    with open_text(str(path), "a" if resume else "w") as output:
        yield output
