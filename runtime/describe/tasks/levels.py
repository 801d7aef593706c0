"""Which hidden tasks are trained on, and three levels of what is held out."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from .hidden_task import HiddenTask, LabelTask

HELD_OUT = 0.15


@dataclass(frozen=True, slots=True)
class Levels:
    """A split of tasks; no task is in two parts.

    seen: trained on. L1: the same tasks in held-out wordings.
    combinations: L2. Attribute and words are seen, but never together, in neither order.
    attributes: L3. The attribute, or the operation, is not seen.
    """

    seen: tuple[HiddenTask, ...]
    combinations: tuple[HiddenTask, ...]
    attributes: tuple[HiddenTask, ...]


def split_levels(tasks: Sequence[HiddenTask], seed: int = 0) -> Levels:
    """The split that a seed draws: a share of the attributes, and of the others' pairs of words."""
    rng = random.Random(seed)
    labelled = _drawn(sorted({task.attribute for task in tasks if task.labels}), rng)
    numeric = _drawn(sorted({task.attribute for task in tasks if not task.labels}), rng)
    unseen = labelled | numeric
    known = [task for task in tasks if task.attribute not in unseen]
    combinations = sorted({key for task in known if (key := _combination(task))})
    held = _drawn(combinations, rng)
    return Levels(
        seen=tuple(task for task in known if _combination(task) not in held),
        combinations=tuple(task for task in known if _combination(task) in held),
        attributes=tuple(task for task in tasks if task.attribute in unseen),
    )


def _drawn(names: Sequence[str], rng: random.Random) -> set[str]:
    return set(rng.sample(names, round(HELD_OUT * len(names))))


def _combination(task: HiddenTask) -> str:
    """Attribute and words, whatever their order; empty for a task without label words."""
    return " ".join((task.attribute, *sorted((task.yes, task.no)))) if isinstance(task, LabelTask) else ""
