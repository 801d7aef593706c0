"""The log of a generator's training, a JSON line a step, and its curves."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...io.atomic_write import write_text
from ...io.cache_dir import disk_errors
from ...train.curves import Curve, write_curves
from .generated import GeneratorStep

# Steps that a point of the curves is the mean of.
_MEAN = 10
# Where the curves end: what an answer costs at first is far more.
_MOST = 1.5


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """path: of the log, NAME.log.jsonl."""

    path: Path

    def begin(self, step: int) -> None:
        """Keeps the lines of the steps before a step; the last may be cut off, or of a step that is done again."""
        kept = (
            [json.dumps(line) + "\n" for line in self._whole_lines() if line["step"] < step] if step else []
        )
        write_text(self.path, "".join(kept))

    def add(self, step: GeneratorStep, seconds: float) -> None:
        line = json.dumps(asdict(step) | {"seconds": round(seconds, 3)}) + "\n"
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def seconds(self) -> float:
        """That the steps took."""
        return float(sum(line["seconds"] for line in self._whole_lines()))

    def draw(self, path: Path) -> None:
        """Writes the curves as PNG, means of some steps each."""
        lines = list(self._whole_lines())
        parts = [lines[start : start + _MEAN] for start in range(0, len(lines), _MEAN)]

        def curve(name: str, label: str) -> Curve:
            means = [sum(line[name] for line in part) / len(part) for part in parts]
            return Curve(label, [part[-1]["step"] + 1 for part in parts], means)

        curves = [curve("loss", "nats an answer"), curve("accuracy", "right answers, of the batch")]
        if any(line["divergence"] for line in lines):
            curves.append(curve("divergence", "KL to the base, everyday prompts"))
        write_curves(curves, path, path.stem, _MOST)

    def _whole_lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for text in self.path.read_text("utf-8").splitlines():
            try:
                line = json.loads(text)
                float(line["step"] + line["seconds"])
            except (ValueError, KeyError, TypeError):
                return
            yield line
