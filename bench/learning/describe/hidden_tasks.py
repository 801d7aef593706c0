"""Can experts that act after the prompt do tasks that the prompt hides?"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from zweave.checkpoint import resolve_model
from zweave.describe.tasks import as_task, hidden_tasks
from zweave.describe.train.direct import DirectRecipe, DirectTraining, right_answers
from zweave.describe.train.rows import RowModel
from zweave.errors import ZweaveError
from zweave.experts import Expert
from zweave.io.cache_dir import cache_dir
from zweave.io.progress import Report as Progress
from zweave.io.progress import progress_bar
from zweave.options.task_options import data_folder
from zweave.tasks import Sample, Task, balanced_shots, expert_template

from ...harness.report import Column, Report, Row

COLUMNS = (
    Column("provider", "task"),
    Column("n", "n", "d"),
    Column("base", "base", ".3f"),
    Column("accuracy", "expert", ".3f"),
    Column("stderr", "± stderr", ".3f"),
    Column("note", "note"),
)


def run(args: argparse.Namespace) -> Report:
    known = {task.name: task for task in hidden_tasks()}
    if unknown := [name for name in args.tasks if name not in known]:
        raise ZweaveError(
            f"there is no hidden task {unknown[0]!r}: one is named like positive-red-blue, or sum"
        )
    tasks = [as_task(known[name], args.listed, most=args.texts) for name in args.tasks]
    data = data_folder(args)
    samples = [task.samples("train", data) for task in tasks]
    recipe = DirectRecipe(steps=args.steps, rows=args.rows, lr=args.lr, seed=args.seed)
    folder = experts_folder(args.model, args.listed)
    folder.mkdir(parents=True, exist_ok=True)
    model = RowModel.open(args.model, getattr(torch, args.dtype), args.first_layer)
    state = folder / f"{args.name}.state"
    training = DirectTraining(model, tasks, samples, recipe, state)
    with progress_bar() as progress:
        _train(training, args.minutes, progress)
        if not training.is_done:
            note = f"step {training.step} of {recipe.steps}: the same command goes on"
            rows: list[Row] = [{"provider": task.name, "note": note} for task in tasks]
        else:
            rows = [
                _finished(training, index, samples[index], folder, args, data, progress)
                for index in range(len(tasks))
            ]
    prompt = "lists all label words" if args.listed else "is the text alone"
    return Report("hidden-tasks", f"Experts after a prompt that {prompt}", COLUMNS, rows, markdown=True)


def experts_folder(model: str, listed: bool) -> Path:
    """Where the experts of hidden tasks lie: in the cache, by the digest of the model's weights."""
    kind = "listed" if listed else "bare"
    return cache_dir() / "describe" / resolve_model(model).digest()[:16] / kind


def _train(training: DirectTraining, minutes: float, progress: Progress) -> None:
    end = time.monotonic() + 60 * minutes
    while not training.is_done and time.monotonic() < end:
        loss = training.advance()
        progress(f"training, loss {loss:.3f}", training.step, training.recipe.steps)


def _finished(
    training: DirectTraining,
    index: int,
    train: Sequence[Sample],
    folder: Path,
    args: argparse.Namespace,
    data: Path | None,
    progress: Progress,
) -> Row:
    """Writes the expert of a task and measures it."""
    task, model = training.tasks[index], training.model
    progress("evaluating", index, len(training.tasks))
    z = training.z_of(index)
    test = balanced_shots(task.samples("test", data), task.labels, 0, args.held_out)
    right = right_answers(model, task, test, {name: part[None] for name, part in z.items()})
    base = right_answers(model, task, test, {})
    accuracy = sum(right) / len(right)
    record = asdict(training.recipe) | {"task": task.name, "accuracy": accuracy, "held_out": len(test)}
    _expert(task, z, train, record, model, args.model).save(folder / f"{_plain(task)}.safetensors", half=True)
    return {
        "provider": task.name,
        "n": len(test),
        "base": sum(base) / len(base),
        "accuracy": accuracy,
        "stderr": math.sqrt(accuracy * (1 - accuracy) / len(test)),
    }


def _plain(task: Task) -> str:
    return task.name.removeprefix("hidden:")


def _expert(
    task: Task,
    z: dict[str, Tensor],
    train: Sequence[Sample],
    record: dict[str, object],
    model: RowModel,
    name: str,
) -> Expert:
    digest = resolve_model(name).digest()
    template = expert_template(task, train, model.tokenizer)
    expert = Expert(
        z=z,
        base_digest=digest,
        scope="after_prompt",
        first_layer=model.first_layer,
        description=task.description,
        training=record,
    )
    return replace(expert, prompt_template=template)
