"""Tasks of the generators of reasoning-gym (optional): `gym:NAME`."""

import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ZweaveError, one_line
from . import prompts
from .task import Sample, Splits, Task

TRAIN, HELD_OUT = 2000, 500
# Each split has a seed of its own; where both draw the same problem the task keeps it for the test.
TRAIN_SEED, TEST_SEED = 1, 0


def gym_task(name: str) -> Task:
    """The task `gym:name`; ZweaveError without the package, or with the generators' names for an unknown one."""
    gym = _package()
    if name not in gym.factory.DATASETS:
        known = ", ".join(sorted(gym.factory.DATASETS))
        raise ZweaveError(f"reasoning-gym has no generator {name!r}: choose of {known}")
    scorer = _dataset(gym, name, size=1, seed=0)

    def judge(sample: Sample, text: str) -> float:
        return 1.0 if scorer.score_answer(text.strip(), sample.data["entry"]) >= 1 else -1.0

    return Task(
        f"gym:{name}",
        f"reasoning-gym's generator {name}",
        partial(_read, gym, name),
        max_tokens=256,
        judge=judge,
    )


def gym_problems(name: str, size: int, seed: int, **settings: int) -> Sequence[dict[str, Any]]:
    """Problems of a generator: "question", "answer" and "metadata" of each.

    settings: the generator's own.
    Raises ZweaveError without the package, and for settings that the generator refuses.
    """
    return _dataset(_package(), name, size, seed, **settings)


def _package() -> ModuleType:
    try:
        gym = importlib.import_module("reasoning_gym")
        importlib.import_module("reasoning_gym.factory")
    except ImportError as error:
        raise ZweaveError(f"gym tasks need reasoning-gym ({error}): pip install reasoning-gym") from None
    return gym


def _dataset(gym: ModuleType, name: str, size: int, seed: int, **settings: int) -> Any:
    try:
        return gym.create_dataset(name, size=size, seed=seed, **settings)
    # A generator may refuse its settings in any way.
    except Exception as error:
        raise ZweaveError(f"reasoning-gym's generator {name} fails: {one_line(error)}") from None


def _read(gym: ModuleType, name: str, _: Path | None) -> Splits:
    def samples(size: int, seed: int) -> list[Sample]:
        return [
            Sample(prompts.chat(entry["question"]), str(entry["answer"]), {"entry": entry})
            for entry in _dataset(gym, name, size, seed)
        ]

    return Splits(samples(TRAIN, TRAIN_SEED), samples(HELD_OUT, TEST_SEED))
