"""`zweave eval --describe FILE`: whether a generator's experts listen to their descriptions."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch

from ..checkpoint.checkpoint import resolve_model
from ..describe.describer import Describer
from ..describe.evaluate import Condition, DescribeEvaluation
from ..describe.train.rows import RowModel
from ..evaluation.table import Cells, print_cells
from ..io.progress import progress_bar
from ..options.task_options import data_folder


def run_describe(args: argparse.Namespace) -> int:
    describer = Describer.load(args.describe, args.model, resolve_model(args.model).digest())
    model = RowModel.open(
        args.model, getattr(torch, args.dtype), describer.trained.training.get("first_layer", 0)
    )
    evaluation = DescribeEvaluation(model, describer, data_folder(args), args.level_tasks, args.samples)
    with progress_bar() as report:
        found = [condition for level in args.tasks for condition in evaluation.level(level, report)]
    if args.json:
        print(json.dumps({"generator": str(args.describe), "rows": [asdict(one) for one in found]}))
    else:
        print_cells(_cells(found))
    return 0


def _cells(found: Sequence[Condition]) -> Cells:
    lines: list[tuple[str, ...]] = [
        ("level", "condition", "accuracy", "matched is ahead by", "tasks"),
        ("---", "---", "---:", "---:", "---:"),
    ]
    shown = ""
    for one in found:
        level, shown = ("" if one.level == shown else one.level), one.level
        ahead = "" if one.condition == "matched" else f"{one.behind:+.3f} ± {one.behind_stderr:.3f}"
        lines.append((level, one.condition, f"{one.accuracy:.3f} ± {one.stderr:.3f}", ahead, str(one.tasks)))
    return lines
