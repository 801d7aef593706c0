"""The log of a training: a file of one JSON line for each step."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..io.atomic_write import write_text
from ..io.cache_dir import disk_errors
from .loop import Step


class Log:
    """A file of one JSON line for each step. A training that continues drops the lines of steps that it repeats.

    The first step rewrites the file, whole or not at all, so that an older log stays until then. The others append.
    """

    def __init__(self, path: Path, keep: bool) -> None:
        self._path = path
        self._is_begun = False
        self.lines: list[dict[str, Any]] = []
        if keep and path.exists():
            # The last line may have been cut off by what ended the process.
            for line in path.read_text("utf-8").splitlines():
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    break

    def add(self, step: Step) -> None:
        """Writes a step's line; steps come in ascending order."""
        line = asdict(step) | {"time": round(time.time(), 1)}
        if self._is_begun:
            self.lines.append(line)
            with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(_written(line))
            return
        self.lines = [*(kept for kept in self.lines if kept["step"] < step.step), line]
        write_text(self._path, "".join(map(_written, self.lines)))
        self._is_begun = True

    def seconds(self) -> float:
        """Time of all steps, those before an interruption included."""
        return sum(line["seconds"] for line in self.lines)


def _written(line: dict[str, Any]) -> str:
    return json.dumps(line) + "\n"
