"""`zweave train`: teaches experts tasks by reinforcement, or by their answers."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zweave.kernels import cpu_isa

from ..errors import ZweaveError
from ..names import Split
from ..options.engine_options import stderr
from ..options.task_options import data_folder
from ..tasks.task import Task
from ..train.recipe import default_objective
from ..train.run import Run, open_policies
from ..train.run_files import compared
from .train_bars import Bars
from .train_plans import Plan, check_files, plans_of


def run(args: argparse.Namespace) -> int:
    from ..tasks import resolve_task
    from ..train.joint.runs import train_runs

    if args.threads:
        torch.set_num_threads(args.threads)
    tasks = [resolve_task(name) for name in args.task]
    # Missing task files and empty splits are told before the model loads.
    needed: list[Split] = ["train", "validation"]
    if args.held_out:
        needed.append("test")
    for task in tasks:
        for split in needed:
            task.samples(split, data_folder(args))
    dtype = args.dtype or default_dtype(args.device)
    plans = plans_of(args, tasks, dtype)
    if args.objective is None:
        _tell_objectives(tasks)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZweaveError(f"--out: cannot make the directory {args.out}: {error.strerror or error}") from None
    # Of a run that was interrupted some trainings may have come to their end.
    resumes = any(plan.resumes for plan in plans)
    unfinished = [plan for plan in plans if not (resumes and plan.is_finished)]
    for plan in unfinished:
        check_files(args, plan)
    runs = _open_runs(args, unfinished, dtype)
    for plan in plans:
        if plan not in unfinished:
            stderr.print(f"{plan.name}: finished already, kept as it is", markup=False)
        elif plan.resumes:
            stderr.print(f"{plan.name}: going on with the unfinished training in {args.out}", markup=False)
    try:
        with Bars({plan.name: plan.recipe.steps for plan in unfinished}) as bars:
            results = train_runs(runs, bars.show)
    except KeyboardInterrupt:
        stderr.print("interrupted: the same command goes on from the last saved step")
        return 130
    found = {plan.name: plan.earlier for plan in plans}
    failed = []
    for plan, result, improved in zip(unfinished, results, bars.improved, strict=True):
        if isinstance(result, ZweaveError):
            del found[plan.name]
            own = improved or (plan.resumes and plan.earlier)
            kept = f" (the best expert so far is kept in {plan.files.expert})" if own else ""
            failed.append(f"{result}{kept}" if len(plans) == 1 else f"{plan.name}: {result}{kept}")
            continue
        found[plan.name] = result
        if not plan.resumes and (verdict := compared(plan.earlier, result)):
            stderr.print(f"{plan.name}: {verdict}", markup=False)
    for plan in plans:
        if (record := found.get(plan.name)) is not None:
            print(json.dumps(record) if args.json else _summary(plan.files.expert, record))
    if failed:
        raise ZweaveError("; ".join(failed))
    return 0


def _open_runs(args: argparse.Namespace, plans: Sequence[Plan], dtype: str) -> list[Run]:
    policies = open_policies(args.model, [plan.recipe for plan in plans], getattr(torch, dtype), args.device)
    return [
        Run(policy, plan.task, plan.recipe, args.model, dtype, data_folder(args), plan.files, args.held_out)
        for policy, plan in zip(policies, plans, strict=True)
    ]


def _tell_objectives(tasks: Sequence[Task]) -> None:
    for task in dict.fromkeys(tasks):
        objective, reason = default_objective(task)
        of = f" for {task.name}" if len(tasks) > 1 else ""
        stderr.print(
            f"objective {objective}{of}: {reason} (--objective chooses another)", markup=False, soft_wrap=True
        )


def default_dtype(device: str) -> str:
    """The dtype that the device multiplies fast: without AVX-512's bfloat16, torch's products in it are far slower."""
    return "bfloat16" if device != "cpu" or cpu_isa() in ("avx512", "amx") else "float32"


def _summary(path: Path, record: dict[str, Any]) -> str:
    text = f"{path}:"
    if "validation_accuracy" in record:
        text += f" validation {record['validation_accuracy']:.3f} (step {record['best_step']}),"
    if "accuracy_after" in record:
        text += f" {record['accuracy_before']:.3f} -> {record['accuracy_after']:.3f}"
        text += f" on {record['held_out']} held-out samples,"
    return f"{text} trained in {record['seconds']} s"
