"""Results as JSON lines in a file: which of them an earlier run left there, and writing on behind them."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import ZweaveError
from ..io.atomic_write import write_text
from ..io.json_text import parse_json
from ..request import Request, Result
from .request_lines import open_text


def request_digest(request: Request | None) -> str | None:
    """What tells a request from others, its options included; None for a line that is none."""
    if request is None:
        return None
    text = json.dumps(dataclasses.asdict(request), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def result_line(index: int, digest: str | None, result: Result, output: IO[str]) -> str:
    """A result as a line of JSON, with its request's index and digest.

    In characters that the stream has: what it escaped itself would be no JSON.
    """
    is_unicode = (getattr(output, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
    fields = {"index": index, "request": digest, **dataclasses.asdict(result)}
    return json.dumps(fields, ensure_ascii=not is_unicode) + "\n"


def finished(path: Path, digests: Sequence[str | None]) -> set[int]:
    """The indices of the results that a file holds, none if there is no file.

    A request that ended with an error has none, so that it is tried again; nor is a last line one that was cut off.

    digests: of the requests that the results may be of.
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
                fields = parse_json(line)
                index, digest, failed = fields["index"], fields["request"], _failed(fields)
            except (ValueError, KeyError, TypeError):
                index = None
            if not isinstance(index, int):
                raise ZweaveError(f"--resume: {path}, line {number} is no result of zweave generate --jsonl")
            if not 0 <= index < len(digests):
                raise ZweaveError(
                    f"--resume: {path}, line {number} answers request {index}, and the input has {len(digests)}: "
                    "give the same input as before"
                )
            if failed:
                continue
            if digest != digests[index]:
                raise ZweaveError(
                    f"--resume: {path}, line {number} answers another request {index} than the input's: "
                    "give the same input and options as before, or another --output"
                )
            found.add(index)
    return found


def _failed(fields: Mapping[str, object]) -> bool:
    return fields.get("finish_reason") == "error"


@contextmanager
def open_results(path: Path, resume: bool) -> Iterator[IO[str]]:
    """Opens a file for results: a new one, or behind the results of an earlier one, without those that failed.

    A file that is to be replaced stays until its successor is whole; that one is FILE.partial until then, and is left
    there if the block fails. Raises ZweaveError if an earlier one was left.
    """
    if resume and path.exists():
        _drop_failed(path)
    if resume or not path.is_file():
        with open_text(str(path), "a" if resume else "w") as output:
            yield output
        return
    partial = path.with_name(f"{path.name}.partial")
    if partial.exists():
        raise ZweaveError(
            f"{partial} is there, what an interrupted run had done: remove it, or go on with it by "
            f"--output {partial} --resume"
        )
    with open_text(str(partial), "w") as output:
        yield output
    partial.replace(path.resolve())


def _drop_failed(path: Path) -> None:
    """Keeps the whole lines of results that did not fail."""
    with open_text(str(path), "r") as lines:
        text = lines.read()
    kept = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in kept if not _failed(parse_json(line))]
    if "".join(kept) != text:
        write_text(path, "".join(kept))
