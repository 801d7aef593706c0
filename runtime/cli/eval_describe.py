"""`zweave eval --describe FILE`: whether a generator's experts listen to their descriptions."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch

from ..checkpoint.checkpoint import resolve_model
from ..describe.describer import Describer
from ..describe.evaluate import Condition, DescribeEvaluation, check_level
from ..describe.train.rows import RowModel
from ..describe.trained_experts import TrainedExperts, load_static
from ..errors import ZweaveError
from ..evaluation.table import Cells, print_cells
from ..io.progress import progress_bar
from ..options.engine_options import stderr
from ..options.task_options import data_folder


def run_describe(args: argparse.Namespace) -> int:
    for name in args.tasks:
        check_level(name)
    if args.expert or args.dispatch or args.kv_reuse:
        raise ZweaveError(
            "--describe evaluates a generator alone: leave out --expert, --dispatch and --kv-reuse"
        )
    digest = resolve_model(args.model).digest()
    describer = Describer.load(args.describe, args.model, digest)
    trained = TrainedExperts.load(args.hidden_experts, digest) if args.hidden_experts else None
    static = load_static(args.static, digest) if args.static else None
    others = [*([static] if static else []), *(trained.experts.values() if trained else [])]
    own = describer.trained.training.get("first_layer", 0)
    first = min([own, *(expert.first_layer for expert in others)])
    evaluation = DescribeEvaluation(
        RowModel.open(args.model, getattr(torch, args.dtype), first),
        describer,
        data_folder(args),
        args.level_tasks,
        args.samples,
        static={name: part[None] for name, part in static.z.items()} if static else None,
        trained=trained,
    )
    with progress_bar() as report:
        levels = {level: evaluation.level(level, report) for level in args.tasks}
    for level, conditions in levels.items():
        if not conditions:
            stderr.print(f"{level} has no tasks: of so few attributes none was held out", markup=False)
    found = [condition for conditions in levels.values() for condition in conditions]
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
