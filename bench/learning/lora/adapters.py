"""The trained adapters: three tasks by seed and rank, and many of rank 16 on generated tasks, in the cache."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from zweave.checkpoint import resolve_model
from zweave.io.cache_dir import cache_dir, lock
from zweave.tasks import Task, resolve_task
from zweave.train import Recipe, Run, default_recipe, open_policy
from zweave.train.run import Report, run_digest
from zweave.train.run_files import RunFiles

from ...arguments.lora_adapters import GENERATED_STEPS, STEPS
from .generated_tasks import ATTRIBUTES, generated_tasks

TASKS = ("sst2", "trec", "addition")
RANK = 16


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """An adapter to train, or one that is there.

    name: of its directory.
    """

    name: str
    task: Task
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """Where the adapters of a model lie, each a directory.

    model, dtype: that they are trained on.
    """

    path: Path
    model: str
    dtype: str

    @classmethod
    def of(cls, model: str, dtype: str) -> "AdapterFolder":
        """In the cache, by the digest of the model's weights."""
        return cls(cache_dir() / "adapters" / resolve_model(model).digest()[:16], model, dtype)

    def directory(self, adapter: TrainedAdapter) -> Path:
        return self._files(adapter).expert

    def record(self, adapter: TrainedAdapter) -> dict[str, Any]:
        """What its training wrote down; empty unless it has ended."""
        found = self._files(adapter).earlier()
        return {} if "unfinished" in found else found

    def train(self, adapter: TrainedAdapter, data: Path | None, report: Report) -> dict[str, Any]:
        """The record of the training, which is skipped if it has ended, and goes on if it was interrupted."""
        files = self._files(adapter)
        with lock(files.expert):
            if done := self.record(adapter):
                return done
            policy = open_policy(self.model, adapter.recipe, getattr(torch, self.dtype))
            run = Run(policy, adapter.task, adapter.recipe, self.model, self.dtype, data, files, held_out=0)
            return run.train(report)

    def _files(self, adapter: TrainedAdapter) -> RunFiles:
        digest = run_digest(adapter.task, adapter.recipe, self.model, self.dtype)
        return RunFiles(self.path, adapter.name, "lora", digest)


def trained_adapters(
    ranks: Sequence[int],
    seeds: Sequence[int],
    generated: int,
    steps: int = STEPS,
    generated_steps: int = GENERATED_STEPS,
) -> list[TrainedAdapter]:
    """All adapters, in the order in which they are wanted: rank 16 of each task, the generated ones, the rest."""
    first = [_of_task(name, RANK, seeds[0], steps) for name in TASKS if RANK in ranks]
    many = [
        _of_generated(index, task, generated_steps) for index, task in enumerate(generated_tasks(generated))
    ]
    rest = [_of_task(name, rank, seed, steps) for seed in seeds for rank in ranks for name in TASKS]
    return list({adapter.name: adapter for adapter in (*first, *many, *rest)}.values())


def is_generated(adapter: TrainedAdapter) -> bool:
    """Whether an adapter's task is a generated one."""
    return adapter.task.name not in TASKS


def check_data(data: Path | None) -> None:
    """Raises ZweaveError if a file of the tasks is missing or malformed."""
    for name in {*TASKS, *ATTRIBUTES}:
        resolve_task(name).has("train", data)


def _of_task(name: str, rank: int, seed: int, steps: int) -> TrainedAdapter:
    task = resolve_task(name)
    return TrainedAdapter(f"{name}-r{rank}-s{seed}", task, _recipe(task, rank, seed, steps, 16, 100))


def _of_generated(index: int, task: Task, steps: int) -> TrainedAdapter:
    return TrainedAdapter(f"g{index:03}-{task.name}", task, _recipe(task, RANK, index, steps, 8, 32))


def _recipe(task: Task, rank: int, seed: int, steps: int, batch: int, validation: int) -> Recipe:
    """Learns the answers, which takes far fewer steps than reinforcement, and validates once, at the end."""
    return default_recipe(
        task, adapter="lora", objective="sft", rank=rank, seed=seed, steps=steps, batch=batch,
        validation=validation, validate_every=steps,
    )  # fmt: skip


def row(adapter: TrainedAdapter, record: dict[str, Any]) -> dict[str, object]:
    """The row of a bench's report."""
    recipe = asdict(adapter.recipe)
    return {
        "provider": adapter.name,
        "task": adapter.task.name,
        "rank": recipe["rank"],
        "seed": recipe["seed"],
        "steps": record.get("steps_done"),
        "seconds": record.get("seconds"),
        "accuracy": record.get("validation_accuracy"),
    }
