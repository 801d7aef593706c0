"""The trainings that a `zweave train` asks for: one for each task, support, rank and seed that it names."""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..errors import ZweaveError
from ..options.file_options import check_output
from ..tasks.task import Task
from ..train.recipe import Recipe, default_recipe
from ..train.run import run_digest, run_record
from ..train.run_files import FIGURES, RunFiles

# Options of which each value makes a training of its own.
_VARIED = ("support", "rank", "seed")
CHOSEN = tuple(Recipe.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Plan:
    """A training that was asked for.

    name: of its files.
    earlier: the record of the expert that has this name already.
    resumes: whether the training was interrupted and goes on.
    is_finished: whether that expert is the end of this very training.
    """

    name: str
    task: Task
    recipe: Recipe
    files: RunFiles
    earlier: dict[str, Any]
    resumes: bool
    is_finished: bool


def plans_of(args: argparse.Namespace, tasks: Sequence[Task], dtype: str) -> list[Plan]:
    """The trainings in the order of the tasks; ZweaveError for names that do not fit them."""
    if len(args.rank or ()) > 1 and args.adapter != "lora":
        raise ZweaveError("--rank: several ranks are for --adapter lora")
    values = [getattr(args, option) or [None] for option in _VARIED]
    chosen = [dict(zip(_VARIED, combination, strict=True)) for combination in product(*values)]
    asked = [(task, variant) for task in tasks for variant in chosen]
    names = _names(args, [_name(task, variant, args) for task, variant in asked])
    plans = []
    for name, (task, variant) in zip(names, asked, strict=True):
        recipe = default_recipe(task, **{key: getattr(args, key) for key in CHOSEN} | variant)
        files = RunFiles(args.out, name, recipe.adapter, run_digest(task, recipe, args.model, dtype))
        earlier, record = files.earlier(), run_record(task, recipe, args.model, dtype)
        is_finished = "unfinished" not in earlier and record.items() <= earlier.items()
        plans.append(Plan(name, task, recipe, files, earlier, files.resumes, is_finished))
    return plans


def _name(task: Task, variant: dict[str, Any], args: argparse.Namespace) -> str:
    """The task's name and the options of which there are several: sst2-rank-8-seed-0."""
    told = [f"{option}-{variant[option]}" for option in _VARIED if len(getattr(args, option) or ()) > 1]
    return "-".join([task.name, *(re.sub(r"\W+", "-", part.removeprefix("support-")) for part in told)])


def _names(args: argparse.Namespace, names: list[str]) -> list[str]:
    if args.name:
        given = args.name.split(",") if len(names) > 1 else [args.name]
        if len(given) != len(names) or not all(given):
            raise ZweaveError(
                f"--name: {len(names)} trainings ({', '.join(names)}) want as many names, separated by commas, "
                f"not {args.name!r}"
            )
        names = given
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ZweaveError(f"two trainings would write {twice[0]}: name each of them, --name A,B")
    return names


def check_files(args: argparse.Namespace, plan: Plan) -> None:
    """Raises ZweaveError where a file of the training would replace another."""
    earlier, expert = plan.earlier, plan.files.expert
    figures = [f"{key.replace('_', ' ')} {earlier[key]}" for key in FIGURES if key in earlier]
    for path in plan.files.written:
        check_output(args, "--out", path, is_continued=plan.resumes or bool(figures))
    if figures and not (plan.resumes or args.overwrite):
        kind = "an unfinished" if "unfinished" in earlier else "a finished"
        raise ZweaveError(
            f"{expert} is the expert of {kind} training ({figures[0]}): "
            "give another --name, or --overwrite to replace it"
        )
