"""`zweave eval`: the base, experts and baselines on tasks, with standard errors.

All experts answer as one mixed batch, greedily over the whole vocabulary; LoRA adapters by the same rule, in the
forward pass of training. The baselines are always part of the table: the commonest answer and, where answers are
labels, the base model restricted to the labels, the same calibrated, and logistic regression on its label scores.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from ..engine.config import DTYPES
from ..engine.engine import Engine
from ..errors import ZweaveError
from ..evaluation import (
    ExpertMethod,
    LabelScores,
    Method,
    ReuseRow,
    Row,
    baselines,
    evaluate,
    reuse_cost,
)
from ..evaluation.reuse import reuse_cells
from ..evaluation.table import Cells, print_cells, row_cells
from ..experts.mixture import ExpertChoice
from ..options.engine_options import (
    check_named,
    load_named,
    open_engine,
    parse_expert,
    read_dispatcher,
    stderr,
)
from ..options.task_options import data_folder
from ..tasks import Sample, Task, resolve_task
from .eval_describe import run_describe
from .eval_dispatch import right_choices, run_dispatch

AnyRow = TypeVar("AnyRow", Row, ReuseRow)


def run(args: argparse.Namespace) -> int:
    if args.describe is not None:
        return run_describe(args)
    tasks = [resolve_task(name) for name in args.tasks]
    data = data_folder(args)
    # Read before the model loads, so that a missing file is an error at once.
    samples = {task.name: task.samples(args.split, data)[: args.samples] for task in tasks}
    if args.kv_reuse and not args.expert:
        raise ZweaveError("--kv-reuse compares experts: name one with --expert")
    named = _experts_named(args)
    right = right_choices(args.right, tasks)
    check_named(args, [*(choice for _, choice in named), *right.values()])
    file = None if args.dispatch is None else read_dispatcher(args, args.dispatch)
    engine = open_engine(args)
    if file is not None:
        return run_dispatch(engine, file, args, tasks, samples, right, _facts(args))
    if args.kv_reuse:
        _print(_reuse_rows(engine, named, tasks, samples), reuse_cells, args)
        return 0
    experts: list[Method] = [*_experts(engine, named), *_loras(args)]
    scores = LabelScores(engine)
    rows: list[Row] = []
    for task in tasks:
        if not task.has("train", data):
            learned = "majority, calibrated and logistic regression" if task.labels else "majority"
            stderr.print(
                f"{task.name} has no train samples: the baselines that need them are left out ({learned})",
                markup=False,
                soft_wrap=True,
            )
        methods: list[Method] = [ExpertMethod("base", engine, None)]
        methods += baselines(scores, task, data, range(args.seeds), args.shots)
        rows += evaluate(
            task, samples[task.name], [*methods, *experts], lambda text: stderr.print(text, style="dim")
        )
    _print(rows, row_cells, args)
    return 0


def _reuse_rows(
    engine: Engine,
    named: Sequence[tuple[str, ExpertChoice]],
    tasks: Sequence[Task],
    samples: Mapping[str, Sequence[Sample]],
) -> list[ReuseRow]:
    experts = _experts(engine, named)
    rows = []
    for task in tasks:
        for expert in experts:
            stderr.print(f"{task.name}: {expert.name}", style="dim")
            rows.append(reuse_cost(engine, task, samples[task.name], expert.name, expert.choice))
    return rows


def _experts_named(args: argparse.Namespace) -> list[tuple[str, ExpertChoice]]:
    """The experts and what the table calls them; a mixture is named as it was written."""
    named: list[tuple[str, ExpertChoice]] = [(text, parse_expert(text)) for text in args.expert]
    return named if args.kv_reuse else [*named, *_named("--runs", args.runs)]


def _experts(engine: Engine, named: Sequence[tuple[str, ExpertChoice]]) -> list[ExpertMethod]:
    load_named(engine, [choice for _, choice in named])
    for _, choice in named:
        engine.check_expert(choice)
    return [ExpertMethod(name, engine, choice) for name, choice in named]


def _loras(args: argparse.Namespace) -> list[Method]:
    if not args.lora:
        return []
    from ..evaluation.lora import LoraModel

    model = LoraModel(args.model, DTYPES[args.dtype], args.device)
    return [model.method(name, Path(directory)) for name, directory in _named("--lora", args.lora)]


def _named(option: str, items: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of a name and one of its paths."""
    found = []
    for item in items:
        name, separator, paths = item.partition("=")
        if not (separator and name and all(paths.split(","))):
            raise ZweaveError(f"{option} takes NAME=PATH,PATH,..., not {item!r}")
        found += [(name, path) for path in paths.split(",")]
    return found


def _print(
    rows: Sequence[AnyRow], cells: Callable[[Sequence[AnyRow]], Cells], args: argparse.Namespace
) -> None:
    if args.json:
        print(json.dumps(_facts(args) | {"rows": [asdict(row) for row in rows]}))
    else:
        print_cells(cells(rows))


def _facts(args: argparse.Namespace) -> dict[str, str]:
    return {"model": str(args.model), "dtype": args.dtype, "split": args.split}
