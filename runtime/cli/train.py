"""`zweave train`: teaches an expert a task by reinforcement, or by its answers.

`zweave train trec` does it with the recipe that is known to work; every option overrides a part of it, and all of
them are recorded in the expert file. A training that was interrupted goes on when the same command is given again.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zweave.kernels import cpu_isa

from ..checkpoint.pull import DEFAULT_MODEL
from ..errors import ZweaveError
from ..experts.expert import Scope
from ..options.arguments import positive_number, positive_whole, whole
from ..options.engine_options import stderr
from ..options.task_options import TASK_HELP, add_data_option, data_folder
from ..train.loop import Step
from ..train.recipe import AdapterKind, Objective, Recipe, default_objective, default_recipe

CHOSEN = tuple(Recipe.__dataclass_fields__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help=TASK_HELP)
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="pulled name, directory or GGUF file (%(default)s)"
    )
    add_data_option(parser)
    parser.add_argument("--out", type=Path, default=Path("experts"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--name", help="of the files in it (the task's)")
    _add_recipe(parser)
    parser.add_argument(
        "--held-out",
        type=whole,
        default=500,
        metavar="N",
        help="test samples of the final figure (%(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="(bfloat16; float32 on a processor that cannot multiply it)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--threads", type=positive_whole, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print the record of the expert as JSON")
    parser.set_defaults(run=run)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recipe", "by default what suits the task")
    group.add_argument(
        "--objective", choices=get_args(Objective), help="(reinforce; sft where answers are texts to be met)"
    )
    group.add_argument("--support", help="full, leading:K, leading:R/8, sparse:K or sparse:R/8")
    group.add_argument("--scope", choices=get_args(Scope), help="which tokens the expert acts on")
    group.add_argument("--first-layer", type=whole, metavar="L", help="adapt nothing below this layer")
    group.add_argument("--steps", type=positive_whole)
    group.add_argument("--batch", type=positive_whole, help="prompts a step")
    group.add_argument("--draws", type=positive_whole, help="actions or answers a prompt")
    group.add_argument("--lr", type=positive_number, help="largest learning rate")
    group.add_argument("--warmup", type=whole, help="steps of rising learning rate")
    group.add_argument("--decay", type=float, help="share of the steps of falling learning rate")
    group.add_argument("--clip", type=positive_number, help="largest norm of a gradient")
    group.add_argument("--entropy", type=float, help="weight of the bonus on the labels' entropy")
    group.add_argument(
        "--mass", type=float, help="weight of the bonus on the labels' share of the vocabulary"
    )
    group.add_argument("--balance", type=float, help="weight of the bonus on each label's share in the batch")
    group.add_argument("--kl", type=float, help="weight of the KL divergence to the base (plain)")
    group.add_argument("--validate-every", type=positive_whole, metavar="N", help="steps between validations")
    group.add_argument("--validation", type=positive_whole, metavar="N", help="samples of a validation")
    group.add_argument("--patience", type=positive_whole, help="validations without gain before it stops")
    group.add_argument("--adapter", choices=get_args(AdapterKind), help="lora: the baseline, by PEFT")
    group.add_argument("--rank", type=positive_whole, help="of lora")
    group.add_argument("--seed", type=whole)


def run(args: argparse.Namespace) -> int:
    from ..tasks import resolve_task
    from ..train.run import Run, open_policy

    if args.threads:
        torch.set_num_threads(args.threads)
    task = resolve_task(args.task)
    # Missing task files are told before the model loads.
    task.has("train", data_folder(args))
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
    policy = open_policy(args.model, recipe, getattr(torch, dtype), args.device)
    name = args.name or task.name
    training = Run(policy, task, recipe, args.model, dtype, data_folder(args), args.out, name, args.held_out)
    if training.resumes:
        stderr.print(f"{name}: going on with the unfinished training in {args.out}", markup=False)
    try:
        with _Bar(name, recipe.steps) as bar:
            record = training.train(bar.show)
    except KeyboardInterrupt:
        stderr.print("interrupted: the same command goes on from the last saved step")
        return 130
    except ZweaveError as error:
        kept = f" (the best expert so far is kept in {training.path})" if training.path.exists() else ""
        raise ZweaveError(f"{error}{kept}") from None
    if args.json:
        print(json.dumps(record))
    else:
        print(_summary(training.path, record))
    return 0


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

    def __enter__(self) -> "_Bar":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def show(self, step: Step) -> None:
        if step.validation is not None:
            self._validation = f"  validation {step.validation:.3f}"
        figures = f"reward {step.reward:+.3f}  accuracy {step.accuracy:.3f}{self._validation}"
        self._bars.update(self._bar, completed=step.step + 1, figures=figures)
        if self._bars.disable and (step.validation is not None or step.step == 0):
            stderr.print(f"step {step.step + 1} of {self._steps}: {figures}", highlight=False)
