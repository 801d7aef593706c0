"""Several runs as one: their steps are made together, the files of each are those of a run alone."""

from collections.abc import Callable, Sequence
from typing import Any

from ...errors import ZweaveError
from ..loop import Step
from ..run import Recorder, Run
from .loop import train_together


def train_runs(
    runs: Sequence[Run], report: Callable[[int, Step], None]
) -> list[dict[str, Any] | ZweaveError]:
    """Trains all to the end, as `Run.train` does each; one that is done is finished while the others go on.

    runs: their policies are of one `open_policies`.
    report: is told the index of a run and a step that it made.
    Returns the record of each run, or what ended it before its time.
    """
    recorders = [Recorder(run) for run in runs]
    results: dict[int, dict[str, Any] | ZweaveError] = {}

    def finish_if_done(index: int) -> None:
        if recorders[index].training.is_done:
            results[index] = recorders[index].finish()

    for index in range(len(runs)):
        finish_if_done(index)
    for index, outcome in train_together([recorder.training for recorder in recorders]):
        if isinstance(outcome, ZweaveError):
            results[index] = outcome
            continue
        recorders[index].add(outcome)
        report(index, outcome)
        finish_if_done(index)
    return [results[index] for index in range(len(runs))]
