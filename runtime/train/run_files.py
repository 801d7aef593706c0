"""The files of a training, and what one of the same name left there before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.lora_record import LORA_RECORD
from ..errors import ZweaveError
from ..experts.expert import Expert
from ..io.json_text import parse_json
from ..names import AdapterKind

_LORA_FILES = ("adapter_config.json", "adapter_model.safetensors", LORA_RECORD)
# What says how good an expert is, the better measure first.
FIGURES = ("accuracy_after", "validation_accuracy")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Where a training writes.

    name: of the files in the directory `out`.
    digest: of all that the training follows from: no other continues from its state.
    """

    out: Path
    name: str
    adapter: AdapterKind
    digest: str

    @property
    def expert(self) -> Path:
        """The expert file, a directory for LoRA; the best expert so far until the training ends."""
        return self.out / (self.name if self.adapter == "lora" else f"{self.name}.safetensors")

    @property
    def log(self) -> Path:
        return self.out / f"{self.name}.log.jsonl"

    @property
    def curves(self) -> Path:
        return self.out / f"{self.name}.png"

    @property
    def state(self) -> Path:
        return self.out / f"{self.name}-{self.digest[:12]}.state"

    @property
    def written(self) -> list[Path]:
        """All files that stay when the training has ended and whose directory exists."""
        files = [self.expert]
        if self.adapter == "lora":
            files = [self.expert / name for name in _LORA_FILES] if self.expert.is_dir() else []
        return [*files, self.log, self.curves]

    @property
    def resumes(self) -> bool:
        """Whether a training was interrupted here, and no finished expert has its name."""
        earlier = self.earlier()
        return self.state.exists() and (not earlier or "unfinished" in earlier)

    def earlier(self) -> dict[str, Any]:
        """The record of the expert that is there; empty if there is none that can be read."""
        if self.adapter == "lora":
            try:
                record = parse_json((self.expert / LORA_RECORD).read_text("utf-8"))["training"]
            except (OSError, ValueError, KeyError, TypeError):
                return {}
            return record if isinstance(record, dict) else {}
        try:
            return dict(Expert.load(self.expert).training)
        except ZweaveError:
            return {}


def compared(earlier: dict[str, Any], record: dict[str, Any]) -> str:
    """Which of two trained experts of one task is better, in words; empty where their records share no figure."""
    for figure in FIGURES:
        before, now = earlier.get(figure), record.get(figure)
        if isinstance(before, int | float) and isinstance(now, int | float):
            verdict = "better than" if now > before else "worse than" if now < before else "as good as"
            return f"{verdict} the one that it replaces ({figure.replace('_', ' ')} {before:.3f})"
    return ""
