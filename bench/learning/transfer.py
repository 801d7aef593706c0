"""What is an expert worth on another model of the same shapes?"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from zweave.checkpoint import Checkpoint, resolve_model
from zweave.decomposition import Decomposition, decompose
from zweave.engine import Engine
from zweave.evaluation import ExpertMethod, evaluate
from zweave.experts import Expert
from zweave.experts.transfer import by_kind, overlaps, shuffled, transfer
from zweave.io.cache_dir import CACHE_VARIABLE
from zweave.io.progress import Report as Progress
from zweave.io.progress import progress_bar
from zweave.options.task_options import data_folder
from zweave.tasks import Sample, Task, resolve_task

from ..harness.report import Column, Report, Row
from .rounded import write_rounded
from .twins import TASK, make_model

COLUMNS = (
    Column("pair", "pair"),
    Column("provider", "model and expert, or matrix"),
    Column("accuracy", "accuracy", ".3f"),
    Column("stderr", "± stderr", ".3f"),
    Column("n", "n", "d"),
    Column("subspace", "shared span", ".3f"),
    Column("chance", "by chance", ".3f"),
    Column("aligned", "same component", ".3f"),
    Column("spectrum", "cosine of spectra", ".3f"),
)


def run(args: argparse.Namespace) -> Report:
    pairs = args.pairs
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="zweave-") as folder, progress_bar() as progress:
        for pair in pairs:
            make = _seeds if pair == "seeds" else _rounded
            rows += make(args, Path(folder), progress)
    title = "Experts carried over to other models; the leading R/8 components compared"
    return Report("transfer", title, COLUMNS, rows, sections=("pair",), markdown=True)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out samples of a task under named experts of a model."""

    pair: str
    task: Task
    samples: Sequence[Sample]
    dtype: str

    def rows(self, model: str, directory: Path, experts: Sequence[tuple[str, Expert | None]]) -> list[Row]:
        """The accuracy of each expert; those of one name share a row."""
        engine = Engine(directory, dtype=self.dtype)
        methods = []
        for index, (name, expert) in enumerate(experts):
            if expert is not None:
                engine.load_expert(f"e{index}", expert)
            methods.append(ExpertMethod(name, engine, None if expert is None else f"e{index}"))
        return [
            {"pair": self.pair, "provider": f"{model}, {row.method}"}
            | {key: getattr(row, key) for key in ("task", "accuracy", "stderr", "n", "runs", "seconds")}
            for row in evaluate(self.task, self.samples, methods)
        ]

    def carried(
        self, model: str, source: Checkpoint, target: Checkpoint, expert: Expert, controls: int
    ) -> list[Row]:
        """The target's rows: the base model, the expert, and the same z in random places."""
        moved = transfer(expert, source, target)
        shuffles = [("z shuffled", shuffled(moved, seed)) for seed in range(controls)]
        experts = [("base", None), ("the expert carried over", moved), *shuffles]
        return self.rows(model, target.directory, experts)


def _overlap_rows(pair: str, source: Decomposition, target: Decomposition) -> list[Row]:
    found = by_kind(list(overlaps(source, target)))
    return [{"pair": pair, "provider": entry.module} | asdict(entry) for entry in found]


def _seeds(args: argparse.Namespace, folder: Path, progress: Progress) -> list[Row]:
    with _own_cache(folder):
        models = {}
        for seed, name in enumerate("AB"):
            directory = folder / name
            report = _steps_of(progress, f"training the small model {name}", args.pretraining)
            make_model(directory, seed, args.pretraining, report)
            models[name] = Checkpoint(directory)
        expert, own = (_train(models[name], name, args.steps, folder, progress) for name in "AB")
        a, b = models["A"], models["B"]
        evaluation = Evaluation("seeds", TASK, TASK.samples("test")[: args.samples], "float32")
        rows = evaluation.rows("A", a.directory, [("base", None), ("its expert", expert)])
        rows += evaluation.carried("B", a, b, expert, args.controls)
        rows += evaluation.rows("B", b.directory, [("an expert of its own", own)])
        return rows + _overlap_rows("seeds", decompose(a), decompose(b))


def _steps_of(progress: Progress, task: str, total: int) -> Callable[[int], None]:
    """Reports how many steps of a task are done."""
    return lambda done: progress(task, done, total)


def _train(checkpoint: Checkpoint, name: str, steps: int, folder: Path, progress: Progress) -> Expert:
    from zweave.train import Recipe, open_policy, train

    recipe = Recipe(steps=steps, batch=52, lr=0.05, validate_every=max(1, steps // 3))
    policy = open_policy(str(checkpoint.directory), recipe, torch.float32)
    samples, validation = TASK.samples("train"), TASK.samples("validation")[: recipe.validation]
    for step in train(policy, TASK, samples, validation, recipe):
        progress(f"training the expert of {name}", step.step + 1, steps)
    path = folder / f"{name}.safetensors"
    policy.adapter.save(path, TASK.description, {"task": TASK.name, "steps": steps})
    return Expert.load(path)


def _rounded(args: argparse.Namespace, folder: Path, progress: Progress) -> list[Row]:
    task = resolve_task(args.task)
    samples = task.samples("test", data_folder(args))[: args.samples]
    source = resolve_model(args.model)
    expert = Expert.load(args.expert)
    # Before anything is written, so that an expert for another model is an error at once.
    expert.check(source.config.adapted_shapes(), source.digest())
    directory = folder / "rounded"
    directory.mkdir()
    progress("rounding the model", 0, 0)
    write_rounded(source, directory)
    evaluation = Evaluation("rounded", task, samples, args.dtype)
    original = decompose(source)
    rows = evaluation.rows("model", source.directory, [("base", None), ("its expert", expert)])
    with _own_cache(folder):
        target = Checkpoint(directory)
        rows += evaluation.carried("copy", source, target, expert, args.controls)
        return rows + _overlap_rows("rounded", original, decompose(target))


@contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """Keeps decompositions of temporary models out of the user's cache."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE_VARIABLE]
        else:
            os.environ[CACHE_VARIABLE] = before
