"""`zweave train`: teaches an expert a task by reinforcement, or by its answers.

`zweave train trec` does it with the recipe that is known to work; every option overrides a part of it, and all of
them are recorded in the expert file. A training that was interrupted goes on when the same command is given again.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zweave.kernels import cpu_isa

from ..errors import ZweaveError
from ..names import Split
from ..options.engine_options import stderr
from ..options.file_options import check_output
from ..options.task_options import data_folder
from ..train.loop import Step
from ..train.recipe import Recipe, default_objective, default_recipe
from ..train.run_files import FIGURES, RunFiles, compared

CHOSEN = tuple(Recipe.__dataclass_fields__)


def run(args: argparse.Namespace) -> int:
    from ..tasks import resolve_task
    from ..train.run import Run, open_policy, run_digest

    if args.threads:
        torch.set_num_threads(args.threads)
    task = resolve_task(args.task)
    # Missing task files and empty splits are told before the model loads.
    needed: list[Split] = ["train", "validation"]
    if args.held_out:
        needed.append("test")
    for split in needed:
        task.samples(split, data_folder(args))
    recipe = default_recipe(task, **{name: getattr(args, name) for name in CHOSEN})
    if args.objective is None:
        objective, reason = default_objective(task)
        stderr.print(
            f"objective {objective}: {reason} (--objective chooses another)", markup=False, soft_wrap=True
        )
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZweaveError(f"--out: cannot make the directory {args.out}: {error.strerror or error}") from None
    dtype = args.dtype or default_dtype(args.device)
    name = args.name or task.name
    files = RunFiles(args.out, name, recipe.adapter, run_digest(task, recipe, args.model, dtype))
    earlier, resumes = files.earlier(), files.resumes
    _check_files(args, files, earlier, resumes)
    policy = open_policy(args.model, recipe, getattr(torch, dtype), args.device)
    training = Run(policy, task, recipe, args.model, dtype, data_folder(args), files, args.held_out)
    if resumes:
        stderr.print(f"{name}: going on with the unfinished training in {args.out}", markup=False)
    try:
        with _Bar(name, recipe.steps) as bar:
            record = training.train(bar.show)
    except KeyboardInterrupt:
        stderr.print("interrupted: the same command goes on from the last saved step")
        return 130
    except ZweaveError as error:
        is_own = bar.has_improved or (resumes and bool(earlier))
        kept = f" (the best expert so far is kept in {files.expert})" if is_own else ""
        raise ZweaveError(f"{error}{kept}") from None
    if args.json:
        print(json.dumps(record))
    else:
        print(_summary(files.expert, record))
    if not resumes and (verdict := compared(earlier, record)):
        stderr.print(f"{name}: {verdict}", markup=False)
    return 0


def _check_files(args: argparse.Namespace, files: RunFiles, earlier: dict[str, Any], resumes: bool) -> None:
    """Raises ZweaveError where a file of the training would replace another."""
    figures = [f"{key.replace('_', ' ')} {earlier[key]}" for key in FIGURES if key in earlier]
    for path in files.written:
        check_output(args, "--out", path, is_continued=resumes or bool(figures))
    if figures and not (resumes or args.overwrite):
        kind = "an unfinished" if "unfinished" in earlier else "a finished"
        raise ZweaveError(
            f"{files.expert} is the expert of {kind} training ({figures[0]}): "
            "give another --name, or --overwrite to replace it"
        )


def default_dtype(device: str) -> str:
    """The dtype that the device multiplies fast: without AVX-512's bfloat16, torch's products in it are far slower."""
    return "bfloat16" if device != "cpu" or cpu_isa() == "avx512" else "float32"


def _summary(path: Path, record: dict[str, Any]) -> str:
    text = f"{path}:"
    if "validation_accuracy" in record:
        text += f" validation {record['validation_accuracy']:.3f} (step {record['best_step']}),"
    if "accuracy_after" in record:
        text += f" {record['accuracy_before']:.3f} -> {record['accuracy_after']:.3f}"
        text += f" on {record['held_out']} held-out samples,"
    return f"{text} trained in {record['seconds']} s"


class _Bar:
    """Progress on standard error: a bar, or a line for each validation if that is no terminal."""

    def __init__(self, name: str, steps: int) -> None:
        self._steps = steps
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=stderr,
            disable=not sys.stderr.isatty(),
        )
        self._bar = self._bars.add_task(name, total=steps, figures="")
        self._validation = ""
        self.has_improved = False

    def __enter__(self) -> "_Bar":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def show(self, step: Step) -> None:
        self.has_improved |= step.improved
        if step.validation is not None:
            self._validation = f"  validation {step.validation:.3f}"
        figures = f"reward {step.reward:+.3f}  accuracy {step.accuracy:.3f}{self._validation}"
        self._bars.update(self._bar, completed=step.step + 1, figures=figures)
        if self._bars.disable and (step.validation is not None or step.step == 0):
            stderr.print(f"step {step.step + 1} of {self._steps}: {figures}", highlight=False)
