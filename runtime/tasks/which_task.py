"""Several tasks as one: which of them a prompt belongs to, as a dispatcher in front of their experts has to decide."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import ZweaveError
from .task import Sample, Split, Splits, Task

VALIDATION = 500


def which_task(tasks: Sequence[Task]) -> Task:
    """A task whose samples are the prompts of other tasks and whose labels are their names.

    Each sample keeps its split. The validation split has VALIDATION samples, equally many of each task.
    """
    names = tuple(task.name for task in tasks)
    if len(set(names)) < max(2, len(names)):
        raise ZweaveError(f"two tasks or more are wanted, each once, not {', '.join(names)}")

    def read(data: Path | None) -> Splits:
        def of(split: Split, most: int | None = None) -> list[Sample]:
            return [
                Sample(sample.prompt, task.name, sample.data)
                for task in tasks
                if task.has(split, data)
                for sample in task.samples(split, data)[:most]
            ]

        return Splits(of("train"), of("test"), of("validation", VALIDATION // len(tasks)))

    return Task("+".join(names), f"Which of {', '.join(names)} is a prompt of?", read, names)
