"""Answers that are kept beside the adapters: each way takes minutes, and a run that ends early loses none."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from zweave.adapters.peft_directory import read_peft
from zweave.io.atomic_write import write_text

from ...harness.machine import commit
from .ways import Answers, Asked


class KeptAnswers:
    """Those of this commit to some questions, by the way in which they were answered.

    folder: of the adapters.
    dtype: that the model ran in.
    """

    def __init__(self, folder: Path, asked: Sequence[Asked], dtype: str) -> None:
        questions = [
            (one.name, read_peft(one.directory).digest, [sample.prompt for sample in one.samples])
            for one in asked
        ]
        self._folder = folder
        self._key = hashlib.sha256(json.dumps([commit(), dtype, questions]).encode()).hexdigest()[:16]

    def get(self, way: str, answer: Callable[[], Answers]) -> Answers:
        """The answers in this way, which are made if there are none."""
        file = self._folder / f"answers-{way}-{self._key}.json"
        if not file.is_file():
            write_text(file, json.dumps(answer()))
        found: Answers = json.loads(file.read_text())
        return found
