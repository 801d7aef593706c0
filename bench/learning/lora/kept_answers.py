"""Answers that are kept beside the adapters: each way takes minutes, and a run that ends early loses none."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from zweave.adapters.peft_directory import read_peft
from zweave.io.atomic_write import write_text
from zweave.kernels import cpu_isa

from ...harness.machine import clean_commit
from .ways import Answers, Asked


class KeptAnswers:
    """Those of this commit and instruction set to some questions, by the way in which they were answered.

    None are kept of a checkout with changes, or of an installed package: nothing tells one from another.

    folder: of the adapters.
    dtype: that the model ran in.
    """

    def __init__(self, folder: Path, asked: Sequence[Asked], dtype: str) -> None:
        questions = [
            (one.name, read_peft(one.directory).digest, [sample.prompt for sample in one.samples])
            for one in asked
        ]
        self._folder = folder
        self._is_keeping = (known := clean_commit()) is not None
        content = json.dumps([known, cpu_isa(), dtype, questions])
        self._key = hashlib.sha256(content.encode()).hexdigest()[:16]

    def get(self, way: str, answer: Callable[[], Answers]) -> Answers:
        """The answers in this way, which are made if none are kept."""
        if not self._is_keeping:
            return answer()
        file = self._folder / f"answers-{way}-{self._key}.json"
        if not file.is_file():
            write_text(file, json.dumps(answer()))
        found: Answers = json.loads(file.read_text())
        return found
