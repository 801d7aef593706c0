"""Progress of trainings on standard error."""

import sys
from collections.abc import Mapping

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..options.engine_options import stderr
from ..train.loop import Step


class Bars:
    """A bar for each training, or a line for each validation where standard error is no terminal.

    improved: of each, whether it has had a best expert.
    """

    def __init__(self, steps: Mapping[str, int]) -> None:
        self._steps = list(steps.items())
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=stderr,
            disable=not sys.stderr.isatty(),
        )
        self._bars = [self._progress.add_task(name, total=total, figures="") for name, total in self._steps]
        self._validations = [""] * len(steps)
        self.improved = [False] * len(steps)

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, index: int, step: Step) -> None:
        """Shows a step of the training of that index."""
        self.improved[index] |= step.improved
        if step.validation is not None:
            self._validations[index] = f"  validation {step.validation:.3f}"
        figures = f"reward {step.reward:+.3f}  accuracy {step.accuracy:.3f}{self._validations[index]}"
        self._progress.update(self._bars[index], completed=step.step + 1, figures=figures)
        if self._progress.disable and (step.validation is not None or step.step == 0):
            name, steps = self._steps[index]
            of = f"{name}: " if len(self._steps) > 1 else ""
            stderr.print(f"{of}step {step.step + 1} of {steps}: {figures}", highlight=False, markup=False)
