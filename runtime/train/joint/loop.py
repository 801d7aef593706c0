"""The loop of several trainings: a step of each, with one forward and one backward pass for all."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

import torch

from ...errors import ZweaveError
from ..forward import joint_hidden_states
from ..loop import Step, Training

Outcome: TypeAlias = Step | ZweaveError
T = TypeVar("T")


def train_together(trainings: Sequence[Training]) -> Iterator[tuple[int, Outcome]]:
    """Trains adapters of the same frozen weights, a step of each in turn; every one ends with its best one loaded.

    A training learns what it would learn alone: it has its own batches, draws, optimizer and schedule, and leaves the
    others' passes when it is done or fails.

    trainings: their policies are of one `open_policies`.
    Yields the index of a training and its next step, or what ended it before its time.
    """
    # Neighbours share their products, see `joint_linear`.
    live = dict(sorted(enumerate(trainings), key=lambda item: item[1].recipe.support))
    while live := {index: training for index, training in live.items() if not training.is_done}:
        for index, outcome in _step(dict(live)):
            if isinstance(outcome, ZweaveError):
                del live[index]
            elif live[index].is_done:
                live[index].load_best()
            yield index, outcome


def _step(trainings: Mapping[int, Training]) -> Iterator[tuple[int, Outcome]]:
    """A step of each training; what they do together counts in equal shares."""
    start = time.perf_counter()
    drawn, failed = _each({index: training.draw for index, training in trainings.items()})
    yield from failed
    parts = [trainings[index].policy.part(p.prompts, p.nodes) for index, p in drawn.items()]
    hidden = joint_hidden_states(parts) if parts else []
    pairs = zip(drawn.items(), hidden, strict=True)
    losses, failed = _each({index: partial(pending.of, states) for (index, pending), states in pairs})
    yield from failed
    if not losses:
        return
    torch.autograd.backward([loss.value for loss in losses.values()])
    share = (time.perf_counter() - start) / len(losses)
    for index, loss in losses.items():
        outcome: Outcome
        try:
            outcome = trainings[index].update(loss, share)
        except ZweaveError as error:
            outcome = error
        yield index, outcome


def _each(calls: Mapping[int, Callable[[], T]]) -> tuple[dict[int, T], list[tuple[int, ZweaveError]]]:
    """What the calls return, and what those that fail raise."""
    results, failed = {}, []
    for index, call in calls.items():
        try:
            results[index] = call()
        except ZweaveError as error:
            failed.append((index, error))
    return results, failed
