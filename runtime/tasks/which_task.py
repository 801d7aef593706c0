"""Several tasks' prompts as one task, whose prompt is it? What a dispatcher in front of their experts finds out."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import ZweaveError
from .task import Sample, Split, Splits, Task

VALIDATION = 500


def which_task(tasks: Sequence[Task]) -> Task:
    """Its samples are those of the tasks, each in the split that it has there; its labels are the tasks' names.

    Of the tasks' validation samples it takes equally many, VALIDATION together.
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
