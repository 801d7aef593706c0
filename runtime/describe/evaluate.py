"""Do experts of descriptions listen to them: accuracy under the right description, and under controls."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ZweaveError
from ..tasks.task import Sample, Task, balanced_shots
from ..text.chatml import chat, parse_chat
from .describer import Describer
from .tasks import HiddenTask, as_task, hidden_tasks, split_levels
from .tasks.hidden_task import chosen_tasks, in_one_order
from .train.direct import PASS
from .train.rows import Row, RowModel
from .trained_experts import TrainedExperts

LEVELS = ("L1", "L2", "L3")
# What the authors of Text-to-LoRA take for descriptions that say nothing.
JUNK = ("dogs;cats;bananas;", "7@9.qwepra#/.sd,s'2OC^039u#rdagjbL", "ggggggggggggggggggggg")
_WORDINGS = 3
_BATCH = 64

Shares = Mapping[str, float]
Report = Callable[[str, int, int], None]


def check_level(name: str) -> None:
    """ZweaveError if it is none of LEVELS."""
    if name not in LEVELS:
        raise ZweaveError(f"there is no level {name!r}: choose of {', '.join(LEVELS)}")


@dataclass(frozen=True, slots=True)
class Condition:
    """Accuracy under one condition at one level: the mean over tasks, each counted once.

    stderr: of that mean, over tasks.
    behind: how far it lies behind "matched", over the same tasks, with its standard error.
    """

    level: str
    condition: str
    accuracy: float
    stderr: float
    behind: float
    behind_stderr: float
    tasks: int


@dataclass(frozen=True, eq=False)
class DescribeEvaluation:
    """How to evaluate a generator.

    tasks: of a level, drawn by the seed; fewer where there are fewer.
    samples: held-out texts of a task, its labels equally often, under three wordings in turn.
    static: z [1, R] of an expert that was trained on all tasks and hears nothing.
    trained: experts of single tasks, for the oracle and for mixtures.
    """

    model: RowModel
    describer: Describer
    data: Path | None
    tasks: int = 20
    samples: int = 60
    seed: int = 0
    static: Mapping[str, Tensor] | None = None
    trained: TrainedExperts | None = None

    def level(self, name: str, report: Report) -> list[Condition]:
        """The conditions of a level, none if it has no tasks; ZweaveError for an unknown one."""
        pool = self._tasks_of(name)
        drawn = random.Random(f"{name} {self.seed}").sample(pool, min(self.tasks, len(pool)))
        # Of a level alone there may be no other attribute.
        wrong = list(dict.fromkeys([*pool, *self._known.values()]))
        shares = []
        for done, hidden in enumerate(drawn):
            report(f"evaluating {name}", done, len(drawn))
            shares.append(self._shares(hidden, random.Random(f"{hidden.name} {self.seed}"), wrong))
            self.model.prompts.clear()
        report(f"evaluating {name}", len(drawn), len(drawn))
        return conditions(name, shares)

    def _tasks_of(self, level: str) -> Sequence[HiddenTask]:
        training = self.describer.trained.training
        tasks = chosen_tasks(hidden_tasks(), training.get("attributes"), training.get("words"))
        split = split_levels(tasks, training.get("split", 0))
        parts = dict(zip(LEVELS, (split.seen, split.combinations, split.attributes), strict=True))
        check_level(level)
        found = parts[level]
        return in_one_order(found) if training.get("one_order") else found

    def _shares(self, hidden: HiddenTask, rng: random.Random, wrong: Sequence[HiddenTask]) -> Shares:
        trained = self.describer.trained
        task = as_task(hidden, listed=trained.training.get("listed", False))
        samples = balanced_shots(task.samples("test", self.data), task.labels, self.seed, self.samples)
        described = [hidden.describe(rng, held_out=True) for _ in range(_WORDINGS)]
        texts = {
            "matched": described,
            "nearest description": self._nearest(described, rng),
            "junk": JUNK,
        }
        for name, others in _others(hidden, wrong).items():
            if others:
                texts[name] = [rng.choice(others).describe(rng, held_out=True) for _ in range(_WORDINGS)]
        shares = {"base": self._right(task, samples, {}, 1)}
        shares["described in the prompt"] = self._right(task, _told(samples, described), {}, 1)
        self.model.prompts.clear()
        for name, some in texts.items():
            z = self.describer.z(self.describer.states(some))
            shares[name] = self._right(task, samples, z, len(some))
        for name, experts in self._fixed(hidden, described).items():
            shares[name] = self._right(task, samples, experts, len(next(iter(experts.values()))))
        return shares

    def _fixed(self, hidden: HiddenTask, described: Sequence[str]) -> dict[str, Mapping[str, Tensor]]:
        """z of the controls that no description is made into; those that there are."""
        found: dict[str, Mapping[str, Tensor] | None] = {
            "mean expert": self._mean_expert,
            "static expert": self.static,
        }
        if self.trained is not None:
            found["similarity mixture"] = self.trained.mixed(described, self.describer)
            found["oracle"] = self.trained.of(hidden.name)
        return {name: z for name, z in found.items() if z is not None}

    def _nearest(self, described: Sequence[str], rng: random.Random) -> list[str]:
        """Of each description a wording of the known task that is nearest to it."""
        trained = self.describer.trained
        similar = self.describer.states(described).mean() @ trained.known.T
        return [self._known[trained.known_tasks[int(index)]].describe(rng) for index in similar.argmax(1)]

    @cached_property
    def _known(self) -> dict[str, HiddenTask]:
        tasks = {task.name: task for task in hidden_tasks()}
        if unknown := [name for name in self.describer.trained.known_tasks if name not in tasks]:
            raise ZweaveError(
                f"the generator was trained on {unknown[0]!r}, which there is not: train it again"
            )
        return {name: tasks[name] for name in self.describer.trained.known_tasks}

    @cached_property
    def _mean_expert(self) -> dict[str, Tensor]:
        """The mean of the experts of all known tasks, [1, R] of each matrix."""
        rng = random.Random(self.seed)
        described = [task.describe(rng) for task in self._known.values()]
        total: dict[str, Tensor] = {}
        for start in range(0, len(described), _BATCH):
            made = self.describer.z(self.describer.states(described[start : start + _BATCH]))
            total = {name: total.get(name, 0) + part.sum(0, keepdim=True) for name, part in made.items()}
        return {name: part / len(described) for name, part in total.items()}

    @torch.no_grad()
    def _right(self, task: Task, samples: Sequence[Sample], z: Mapping[str, Tensor], experts: int) -> float:
        """The share of right answers, greedy over the whole vocabulary; the experts take turns."""
        rows = [
            Row(task, sample, index // max(1, len(task.labels)) % experts)
            for index, sample in enumerate(samples)
        ]
        right = 0
        for start in range(0, len(rows), PASS):
            right += int(self.model.scored(rows[start : start + PASS], z).is_greedy.sum())
        return right / len(rows)


def _others(hidden: HiddenTask, pool: Sequence[HiddenTask]) -> dict[str, list[HiddenTask]]:
    """Tasks whose descriptions are wrong: any other, one of the same words, the reverse."""
    another = [task for task in pool if task.attribute != hidden.attribute]
    same_words = [task for task in another if task.labels and task.labels == hidden.labels]
    own = [task for task in pool if task.attribute == hidden.attribute and task.labels]
    reverse = [task for task in own if task.labels == hidden.labels[::-1]]
    return {"shuffled": another, "shuffled, same words": same_words, "reversed words": reverse}


def _told(samples: Sequence[Sample], described: Sequence[str]) -> list[Sample]:
    """The samples with their descriptions in front of the prompt."""
    told = []
    for index, sample in enumerate(samples):
        turn = parse_chat(sample.prompt)
        assert turn is not None
        words, opening = turn
        told.append(replace(sample, prompt=chat(f"{described[index % len(described)]}\n{words}", opening)))
    return told


def conditions(level: str, shares: Sequence[Shares]) -> list[Condition]:
    """The conditions of a level from the shares of right answers of its tasks, in the order of first mention."""
    names = dict.fromkeys(name for one in shares for name in one)
    found = []
    for name in names:
        # Not every task has every control.
        pairs = [(one[name], one["matched"]) for one in shares if name in one]
        accuracy, stderr = _mean([own for own, _ in pairs])
        behind, behind_stderr = _mean([matched - own for own, matched in pairs])
        found.append(Condition(level, name, accuracy, stderr, behind, behind_stderr, len(pairs)))
    return found


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """With the standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.fmean(values), error
